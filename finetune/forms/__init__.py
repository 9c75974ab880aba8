"""The forms of tasks: for each, how files become rows, and logits become scores and answers."""

from finetune.forms.choices import CHOICE
from finetune.forms.form import Form, Logits
from finetune.forms.labels import MULTI, SCORE, SINGLE
from finetune.forms.spans import SPANS
from finetune.forms.tags import TAGS

__all__ = ["FORMS", "Form", "Logits"]

FORMS: dict[str, Form] = {
    "single": SINGLE,
    "multi": MULTI,
    "score": SCORE,
    "choice": CHOICE,
    "spans": SPANS,
    "tags": TAGS,
}
