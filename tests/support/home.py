"""A small `experiments` folder with exhibits of every kind, which the tests put in the place of the real one."""

from __future__ import annotations

import shutil
from pathlib import Path

from experiments.papers import strict_yaml

_RUNS = """
runs:
  "NAMES":
    matrix: {row: [ROWS]}
    full: {configs: [], options: {name: "NAMES", trainer.max_epochs: 20}}
    miniature: {configs: [], options: {name: "NAMES", trainer.max_epochs: 2}}
  gone:
    full: {configs: [], options: {name: gone}}
  broken:
    miniature: {configs: [], options: {name: broken}}
"""
_FILES = {
    "mwa/exhibits/table1.yaml": """
title: "Table 1: full fine-tuning <against> MWA & its cost, 3 % of $"
kind: table
published: mwa.table1
note: "The paper prints 304 % | of base's 222M; a_b."
variants:
  - {label: full fine-tuning, runs: {run: full}, published: {model: beit3-base, tuning: full}}
  - {label: "MWA_64 (KE & AE)", runs: {run: mwa}, published: {model: beit3-base, tuning: mwa}}
  - {label: head only, runs: {run: head}, beyond: true}
  - {label: out of luck, runs: {run: broken}, beyond: true}
  - {label: full scale only, runs: {run: gone}, beyond: true}
columns:
  - {name: tunable_m, label: "Tunable, M", cost: tunable_parameters, factor: 1.0e-6, digits: 2, better: low}
  - {name: memory_gb, label: "Memory, GB", cost: peak_memory_bytes, factor: 1.0e-9, digits: 3, better: low}
  - {name: minutes, label: Minutes an epoch, cost: seconds_per_epoch, factor: 0.016666666666666666, digits: 2, better: low}
  - {name: coco_ir1, label: COCO IR@1, metric: t2i_r1}
  - {name: coco_tr1, label: COCO TR@1, metric: i2t_r1}
  - {name: flickr_ir1, label: Flickr IR@1, metric: t2i_r1, data: flickr30k}
claims:
  - text: loses less than 1 point
    test: within
    margin: 1.0
    high: [["MWA_64 (KE & AE)", coco_ir1]]
    low: [[full fine-tuning, coco_ir1]]
    reason: the recalls alone
  - text: beats the heads alone
    test: greater
    high: [["MWA_64 (KE & AE)", coco_ir1], ["MWA_64 (KE & AE)", coco_tr1], [full scale only, coco_tr1]]
    low: [[head only, coco_ir1], [head only, coco_tr1], [head only, coco_tr1]]
  - text: about 3 % of the parameters
    test: ratio
    margin: 0.04
    high: [["MWA_64 (KE & AE)", tunable_m]]
    low: [[full fine-tuning, tunable_m]]
  - {text: takes less time, test: ratio, margin: 1.0, high: [["MWA_64 (KE & AE)", minutes]], low: [[full fine-tuning, minutes]]}
  - {text: beats the unlucky, test: greater, high: [["MWA_64 (KE & AE)", coco_ir1]], low: [[out of luck, coco_ir1]]}
  - {text: no significant decrease, test: none, reason: the paper names no test}
""",
    "mwa/exhibits/figure2.yaml": """
title: "Figure 2: mid-dimension"
kind: figure
figure: {kind: lines, x_label: mid-dimension, y_label: "recall@1, %"}
variants:
  - {label: "0", runs: {run: head}, x: 0}
  - {label: "1", runs: {run: mwa}, x: 1}
  - {label: "64", runs: {run: full}, x: 64}
columns:
  - {name: coco_ir1, label: IR@1, metric: t2i_r1}
  - {name: coco_tr1, label: TR@1, metric: i2t_r1}
""",
    "iais/exhibits/figure3.yaml": """
title: "Figure 3: ISDa against Meta-Sum"
kind: figure
figure: {kind: scatter, logged: [val/isda, val/rsum], x_label: ISDa, y_label: Meta-Sum}
variants: [{label: baseline, runs: {run: none}}, {label: singular, runs: {run: singular}}]
claims: [{text: "pearson(ISDa, Meta-Sum) = -0.60", test: correlation, margin: -0.6}]
""",
    "iais/exhibits/figure5.yaml": """
title: "Figure 5: IAIS loss"
kind: figure
figure: {kind: curves, logged: [train/iais], x_label: step, y_label: loss}
variants: [{label: baseline, runs: {run: none}}, {label: singular, runs: {run: singular}}]
""",
    "iais/exhibits/figure6.yaml": """
title: "Figure 6: annealing schedules"
kind: figure
figure: {kind: schedules}
""",
    "iais/exhibits/figure7.yaml": """
title: "Figure 7: self-attention maps"
kind: figure
figure: {kind: maps}
variants: [{label: baseline, runs: {run: none}}, {label: singular, runs: {run: singular}}]
""",
    "i_tuning/exhibits/figure1.yaml": """
title: "Figure 1: CIDEr against parameters"
kind: figure
published: i_tuning.table1
figure: {kind: scatter, x_column: params_m, y_column: coco_cider, x_label: "tunable parameters, M", y_label: CIDEr}
variants:
  - {label: GPT-2, runs: {run: base}, published: {model: i-tuning-gpt2, vlp: false}}
  - {label: ClipCap, runs: {run: clipcap}, published: {model: clipcap-gpt2-large}}
columns:
  - {name: params_m, label: "Parameters, M", cost: tunable_parameters, factor: 1.0e-6}
  - {name: coco_cider, label: CIDEr, metric: cider, factor: 100}
  - {name: coco_spice, label: SPICE, metric: spice, factor: 100}
claims:
  - {text: outperforms ClipCap, test: greater, high: [[GPT-2, coco_cider]], low: [[ClipCap, coco_cider]]}
""",
    "i_tuning/exhibits/table3.yaml": """
title: "Table 3: captions"
kind: table
figure: {kind: captions}
variants: [{label: GPT-2, runs: {run: base}}, {label: ClipCap, runs: {run: clipcap}}]
columns: [{name: cider, label: CIDEr, metric: cider, factor: 100}]
""",
}
_ROWS = {"mwa": "full, mwa, head", "iais": "none, singular", "i_tuning": "base, clipcap"}


def write_home(folder: Path) -> Path:
    """Writes it: what `experiments.papers.strict_yaml.HERE` is set to."""
    home = folder / "experiments" / "papers"
    for paper, rows in _ROWS.items():
        (home / paper / "exhibits").mkdir(parents=True)
        (home / paper / "runs.yaml").write_text(_RUNS.replace("ROWS", rows).replace("NAMES", "{row}"))
    for name, text in _FILES.items():
        (home / name).write_text(text)
    shutil.copy(strict_yaml.HERE / "numbers.yaml", home)
    return home
