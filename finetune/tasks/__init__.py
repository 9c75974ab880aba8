"""The tasks by name: one short file and one row each."""

from finetune.task import Task
from finetune.tasks import (
    afqmc,
    c3,
    chid,
    chnsenticorp,
    cluener,
    cluewsc2020,
    cmnli,
    cmrc2018,
    copa,
    csl,
    diagnostics,
    drcd,
    iflytek,
    lcqmc,
    msra_ner,
    ocnli,
    tnews,
    xnli,
)

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        afqmc, tnews, iflytek, cmnli, ocnli, csl, cluewsc2020, cmrc2018, chid, c3,
        diagnostics, drcd, cluener, msra_ner, xnli, lcqmc, chnsenticorp, copa,
    )
}  # fmt: skip
