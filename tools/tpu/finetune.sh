#!/usr/bin/env bash
# Fine-tunes a model on all of CLUE on a TPU VM of one host, and leaves a submission file.
source "${BASH_SOURCE[0]%/*}/common.sh"

MODEL='' OUTPUT=work/clue TASKS=all DATA=''
OPTIONS=(
  "--model MODEL published name, or a folder on the VM such as bucket/run/model (required)"
  "--output OUTPUT folder on the VM (default: work/clue)"
  "--tasks TASKS all, or names with commas between them (default: all)"
  "--data-root DATA folder with the official zips on the VM (default: they are downloaded)"
)
parse "" "Starts finetune.clue; log.sh follows it, fetch.sh brings the results." "$@"
[[ -n $MODEL ]] || die "--model is needed"

bash "${BASH_SOURCE[0]%/*}/start.sh" --name "$NAME" --zone "$ZONE" \
  ${PROJECT:+--project "$PROJECT"} ${DRY_RUN:+--dry-run} --worker 0 -- \
  python -m finetune.clue --model "$MODEL" --tasks "$TASKS" --output "$OUTPUT" \
  ${DATA:+--data-root "$DATA"}
