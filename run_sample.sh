#!/usr/bin/env bash
# From a Chinese sample text to a small trained model: vocabulary, shards, training, evaluation,
# export, and a few masked sentences filled in. Some minutes on two CPU cores.
#
#   bash run_sample.sh [OUTPUT_FOLDER]        (default: sample_run)
#
# Run again, it goes on where it was. It makes its own virtual environment in .venv; set PYTHON to
# choose the interpreter that makes it.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-sample_run}
say() { printf '\n== %s\n' "$*" >&2; }

source tools/setup_env.sh requirements.txt

say "1/5 vocabulary from pretraining/sample_zh.txt"
"$python" -m pretraining.build_vocab --input pretraining/sample_zh.txt --output "$out/vocab.txt" \
  --size 8000

say "2/5 shards of 64 slots, masks fixed in them, 12 copies with other masks"
"$python" -m pretraining.build_shards --input pretraining/sample_zh.txt --vocab "$out/vocab.txt" \
  --output "$out/shards" --seq-len 64 --masking whole-word --max-predictions 10 --dupe-factor 12

say "3/5 training the tiny preset, 600 steps (and export to $out/run/model and $out/run/tf)"
"$python" -m pretraining.run --preset tiny --data "$out/shards" --output "$out/run" --steps 600 \
  --batch-size 16 --learning-rate 1e-3 --warmup-steps 60 --dropout 0 --log-every 50 --save-every 200

say "4/5 masked sentences filled in: answers with their probabilities"
"$python" -m tools.predict --model "$out/run/model" --top-k 3 <<'EOF'
清晨五点，渔港的灯一盏接一[MASK]地亮了起来。
平时很少说话的人，这一天都互相打了招[MASK]。
体育场里坐满了来看马拉松的观[MASK]。
EOF

say "5/5 evaluation on every training record"
"$python" -m pretraining.evaluate --model "$out/run/model" --data "$out/shards"
