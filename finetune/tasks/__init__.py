"""The tasks by name: one short file and one row each."""

from finetune.task import Task
from finetune.tasks import (
    afqmc,
    chnsenticorp,
    cluewsc2020,
    cmnli,
    copa,
    csl,
    diagnostics,
    iflytek,
    lcqmc,
    ocnli,
    tnews,
    xnli,
)

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        afqmc, tnews, iflytek, cmnli, ocnli, csl, cluewsc2020, diagnostics,
        xnli, lcqmc, chnsenticorp, copa,
    )
}  # fmt: skip
