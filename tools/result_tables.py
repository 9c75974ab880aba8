"""The tables of docs/RESULTS.md: for each kind of result its columns, and what stands in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Column = tuple[str, Callable[[dict[str, Any]], Any]]


def _share(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda r: "" if r.get(key) is None else f"{100 * r[key]:.1f} %"


def _number(key: str, digits: int = 0, per: float = 1) -> Callable[[dict[str, Any]], str]:
    return lambda r: "" if r.get(key) is None else f"{r[key] / per:,.{digits}f}"


def _word(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda r: "" if r.get(key) is None else str(r[key])


def _option(name: str) -> Callable[[dict[str, Any]], str]:
    """What the command says for an option."""

    def said(r: dict[str, Any]) -> str:
        words = r["command"].split()
        return words[words.index(name) + 1] if name in words else ""

    return said


def _ratio(r: dict[str, Any]) -> str:
    if "ratio_median" not in r:
        return ""
    return f"{r['ratio_median']} ({r['ratio_min']} to {r['ratio_max']})"


def _sent(r: dict[str, Any]) -> str:
    parts = [f"{kind} {v['bytes'] / 1e6:,.1f} MB" for kind, v in r.get("collectives", {}).items()]
    return ", ".join(parts) or "nothing"


def _times(name: str, of: str = "") -> Callable[[dict[str, Any]], str]:
    def told(r: dict[str, Any]) -> str:
        found = r[name]
        if f"{of}p50_ms" not in found:
            return ""
        return f"{found[f'{of}p50_ms']:,.1f}, {found[f'{of}p99_ms']:,.1f}"

    return told


def _seconds(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda r: ", ".join(f"{s:.2f}" for s in r[name]["seconds"])


def _refused(r: dict[str, Any]) -> str:
    statuses = r["at_5_times"]["statuses"]
    return f"{statuses.get('200', 0):,}, {statuses.get('429', 0):,}"


def _memory(r: dict[str, Any]) -> str:
    return ", ".join(map(str, r["at_5_times"]["memory_mb"]))


_MODEL: list[Column] = [
    ("model", _word("preset")), ("B", _number("batch_size")), ("T", _number("seq_len")),
]  # fmt: skip


def _floor(r: dict[str, Any]) -> str:
    """What an evaluation says of answers that need no model."""
    if "likest_sentence" in r:
        return f"the sentence most like the question: F1 {100 * r['likest_sentence']['f1']:.1f} %"
    for name, what in (("by_chance", "by chance"), ("majority", "the commonest class")):
        if name in r:
            return f"{what}: {100 * r[name]:.1f} %"
    return ""


def _curve(r: dict[str, Any]) -> str:
    """The score at every evaluation of a fine-tuning run."""
    values = [entry[r["metric"]] for entry in r["curve"]]
    return ", ".join("none" if value is None else f"{100 * value:.2f}" for value in values)


TABLES: dict[str, list[Column]] = {
    "agreement": [
        ("what", _word("what")),
        ("compared", _number("compared")),
        ("largest difference", lambda r: f"{r['difference']:.1e}" if r["difference"] else "none"),
        ("demanded", lambda r: f"{r['demanded']:.0e}" if r["demanded"] else "equal"),
        ("test", lambda r: f"`{r['test']}`"),
    ],
    "shards": [
        ("processes", _option("--workers")),
        ("rows", _number("rows")),
        ("million tokens", _number("tokens", 1, 1e6)),
        ("padding", _share("padding_share")),
        ("seconds", _number("seconds", 1)),
        ("MB/s", _number("megabytes_per_second", 2)),
        ("peak MB of a process", _number("peak_mb")),
    ],
    "questions": [
        ("questions", lambda r: f"{r['train'] + r['dev']:,}"),
        ("mean characters of a passage", _number("mean_passage", 1)),
        ("of a question", _number("mean_question", 1)),
        ("seconds", _number("command_seconds", 1)),
        ("peak MB", _number("peak_mb")),
    ],
    "pretraining": [
        ("steps", _number("steps")),
        ("training loss at the end", _number("masked_lm_loss", 3)),
        ("real tokens a second at the end", _number("tokens_per_second")),
        ("seconds in all", _number("seconds")),
        ("peak MB", _number("peak_mb")),
    ],
    "curve": [
        ("step", _number("step")),
        ("held-out loss", _number("masked_lm_loss", 3)),
        ("held-out accuracy", _share("masked_lm_accuracy")),
        ("always the most frequent token", _share("most_frequent_token_accuracy")),
    ],
    "finetuning": [
        ("task", _word("task")),
        ("training examples", _number("train_examples")),
        ("T", _option("--seq-len")),
        ("steps", _number("steps")),
        ("measure", _word("metric")),
        ("at each evaluation", _curve),
        ("best", lambda r: f"{100 * r['best_value']:.2f} %"),
        ("seconds", _number("seconds")),
    ],
    "evaluation": [
        ("task", _word("task")),
        ("examples", _number("examples")),
        ("accuracy", _share("accuracy")),
        ("F1", _share("f1")),
        ("exact", _share("em")),
        ("without a model", _floor),
        ("seconds", _number("command_seconds")),
    ],
    "sample": [
        ("records", _number("sequences")),
        ("predictions", _number("predictions")),
        ("accuracy", _share("masked_lm_accuracy")),
        ("seconds in all", _number("command_seconds")),
        ("peak MB", _number("peak_mb")),
    ],
    "start": [
        ("command", _word("module")),
        ("to the first update, s", lambda r: ", ".join(f"{s:.1f}" for s in r["cold_seconds"])),
        ("programs kept, s", lambda r: ", ".join(f"{s:.1f}" for s in r["warm_seconds"])),
    ],
    "sweep": [
        ("task", _word("task")),
        ("command", lambda r: r["command"].split()[2]),
        ("seconds", _number("command_seconds", 1)),
    ],
    "tpu": [
        ("topology", _word("topology")),
        *_MODEL,
        ("estimated ms a step", _number("estimated_ms_per_step", 1)),
        ("million slots a second", _number("tokens_per_second", 2, 1e6)),
        ("MFU", _share("mfu")),
        ("GB a device", _number("hbm_bytes_per_device", 2, 1e9)),
        ("arrays exchanged", _sent),
        ("hours for 10^9 slots", _number("hours_per_billion_tokens", 2)),
        ("dollars", _number("dollars_per_billion_tokens", 2)),
    ],
    "step": [
        *_MODEL,
        ("type", _word("dtype")),
        ("device", lambda r: r["machine"] if r["device"] == "cpu" else r["device"]),
        ("ms a step", _number("ms_per_step", 1)),
        ("slots a second", _number("slots_per_second")),
        ("MFU", _share("mfu")),
        ("PyTorch, ms", _number("peer_ms_per_step", 1)),
        ("ratio", _ratio),
    ],
    "packing": [
        *_MODEL,
        ("padding, packed", _share("packed_padding_share")),
        ("padding, a document a row", _share("padded_padding_share")),
        ("real tokens a second, packed", _number("packed_tokens_per_second")),
        ("a document a row", _number("padded_tokens_per_second")),
        ("ratio", _ratio),
    ],
    "data": [
        ("MB", _number("megabytes", 1)),
        ("T", _number("seq_len")),
        ("lines of equal tokens", lambda r: f"{r['lines_equal']:,} of {r['lines']:,}"),
        ("MB/s", _number("our_mb_per_s", 2)),
        ("the original's way, MB/s", _number("peer_mb_per_s", 2)),
        ("ratio", _ratio),
        ("masked batches, million slots a second", _number("batch_slots_per_second", 1, 1e6)),
    ],
    "segmenter": [
        ("MB", _number("megabytes", 1)),
        ("places compared", _number("boundaries_compared")),
        ("differing", _number("boundaries_differing")),
        ("MB/s", _number("our_mb_per_s", 2)),
        ("jieba, MB/s", _number("peer_mb_per_s", 2)),
        ("ratio", _ratio),
    ],
    "predict": [
        ("model", _word("model")),
        ("type", _word("dtype")),
        ("device", lambda r: r["machine"] if r["device"] == "cpu" else r["device"]),
        ("texts", _number("texts")),
        ("texts a second", _number("our_texts_per_second", 1)),
        ("pipeline", _number("peer_texts_per_second", 1)),
        ("ratio", _ratio),
        ("largest difference", lambda r: f"{r['largest_difference']:.1e}"),
        ("same labels", _share("same_labels")),
        ("a text alone, ms", _number("our_ms_alone", 1)),
        ("pipeline, ms", _number("peer_ms_alone", 1)),
        ("start to first answer, s", _number("our_seconds_to_first_answer", 1)),
        ("pipeline, s", _number("peer_seconds_to_first_answer", 1)),
    ],
    "serve": [
        ("model", _word("model")),
        ("texts a request", _number("texts_a_request")),
        ("texts a second", _number("server_texts_per_second", 1)),
        ("of the bare model", _share("of_bare")),
        ("ready after, s", _number("seconds_until_ready", 1)),
        ("at 70 %: p50, p99 ms", _times("at_70_percent")),
        ("with 50 slow clients", _times("with_slow_clients")),
        ("at 5 times: answered, refused", _refused),
        ("refused after p50, p99 ms", _times("at_5_times", "refused_")),
        ("stopped under load: lost", lambda r: str(sum(r["drain"]["lost"].values()))),
        ("MB before and after 5 times", _memory),
    ],
    "soak": [
        ("model", _word("model")),
        ("seconds", lambda r: f"{r['soak']['seconds']:,.0f}"),
        ("answers", lambda r: f"{r['soak']['statuses'].get('200', 0):,}"),
        (
            "others",
            lambda r: str(
                sum(r["soak"]["statuses"].values()) - r["soak"]["statuses"].get("200", 0)
            ),
        ),
        ("memory in MB, every tenth", lambda r: ", ".join(map(str, r["soak"]["memory_mb"]))),
    ],
    "fuzz": [
        ("requests", _number("requests")),
        ("statuses", lambda r: ", ".join(f"{k}: {v}" for k, v in r["statuses"].items())),
        ("unexpected", lambda r: str(r["unexpected"])),
    ],
    "export": [
        ("task", _word("task")),
        ("examples", _number("examples")),
        ("runtime", _word("runtime")),
        ("MB", _number("megabytes", 1)),
        ("largest difference of a logit", lambda r: f"{r['largest_difference']:.1e}"),
        ("accuracy", lambda r: f"{100 * r['accuracy']:.2f} %"),
        ("texts a second", _number("texts_per_second", 1)),
    ],
    "tokenizer": [
        ("MB", _number("megabytes", 1)),
        ("lines of equal tokens", lambda r: f"{r['lines_equal']:,} of {r['lines']:,}"),
        ("peer", _word("peer")),
        ("MB/s", _number("ours_mb_per_s", 1)),
        ("peer, MB/s", _number("peer_mb_per_s", 2)),
        ("ratio", _ratio),
    ],
    "convert": [
        ("model", _word("preset")),
        ("MB", _number("weights_mb", 1)),
        ("to a model directory, s", _seconds("to_model")),
        ("to TF-BERT, s", _seconds("to_tf")),
        ("peak MB", lambda r: f"{r['to_model']['peak_mb']:,.0f}, {r['to_tf']['peak_mb']:,.0f}"),
        ("equal after the way there and back", lambda r: "yes" if r["round_trip_equal"] else "no"),
    ],
    "finetune": [
        ("task", _word("task")),
        ("examples", _number("examples")),
        ("examples a second", _number("our_examples_per_second", 1)),
        ("PyTorch", _number("peer_examples_per_second", 1)),
        ("loss difference", lambda r: f"{r['loss_difference']:.1e}"),
        ("ratio", _ratio),
    ],
}
