"""The commands. Each imports what it needs when it runs, so that ``--help`` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.cli.options import (
    NOT_OF_A_CACHE,
    GroupedCommand,
    RunOption,
    collect_settings,
    typed_models,
    with_run_options,
)
from limbeck.core.errors import SettingsError

__all__ = ["app"]

app = typer.Typer(
    name="limbeck",
    help="Distil image classifiers: train a small student to carry a large teacher's knowledge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = Annotated[Path, typer.Option("--output", "-o", help="The run folder to make.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings to start from: a run's config.json.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=VALUE", help="Any setting by its name in config.json; repeatable."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, train nothing, write nothing.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Best = Annotated[
    bool, typer.Option("--best", help="The best epoch on validation, instead of the last.")
]
# A run folder is data: code that it names is run only where the user names it as well.
StudentModel = Annotated[
    str | None,
    typer.Option("--student", "--model", help="Repeat file.py:function, if the run has one."),
]
TeacherModel = Annotated[
    list[str] | None,
    typer.Option("--teacher", "--teacher-model", help="The same of the run's teacher; repeatable."),
]
OtherModels = Annotated[
    str | None,
    typer.Option(
        "--assistants", "--peers", metavar="A,B", help="The same of its further networks."
    ),
]


def _print_version(asked: bool) -> None:
    if asked:
        from limbeck._version import __version__

        typer.echo(f"limbeck {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    del version


@app.command(short_help="Teach three students on real digits; who won?")
def demo(
    out: Annotated[Path, typer.Option("--out", "--output", "-o", help="Where the runs go.")] = Path(
        "demo"
    ),
    quiet: Quiet = False,
) -> None:
    """Train a teacher on real digits, distil it three ways, and say honestly who won."""
    from limbeck.cli.demo import run_demo

    run_demo(out, quiet=quiet)


@app.command(cls=GroupedCommand, short_help="Train a network without a teacher.")
@with_run_options(teacher=False)
def train(
    output: Output,
    config: Config = None,
    set_: Set = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json_: Json = False,
    *,
    options: dict[RunOption, Any],
) -> None:
    """Train a network without a teacher: the matched baseline, or a teacher to be.

    With --config of a distilled run, its baseline: the same but for teacher and method.
    """
    from limbeck.cli.run import run

    values = collect_settings(options, config=config, overrides=set_ or [], teacher=False)
    typed = typed_models(options, set_ or [])
    run(values, output, typed=typed, dry_run=dry_run, quiet=quiet, as_json=json_)


@app.command(cls=GroupedCommand)
@with_run_options(teacher=True)
def distill(
    output: Output,
    config: Config = None,
    set_: Set = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json_: Json = False,
    teacher_model: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher-model",
            help="Repeat file.py:function, if the teacher's run has one; repeatable.",
            rich_help_panel="Networks and method",
        ),
    ] = None,
    *,
    options: dict[RunOption, Any],
) -> None:
    """Train a student to carry a teacher's knowledge."""
    from limbeck.cli.run import run

    values = collect_settings(options, config=config, overrides=set_ or [], teacher=True)
    typed = typed_models(options, set_ or [])
    typed += _given(teacher_model)
    run(values, output, typed=typed, dry_run=dry_run, quiet=quiet, as_json=json_)


@app.command(cls=GroupedCommand, short_help="Store a teacher's logits, to train without it.")
@with_run_options(teacher=True, without=NOT_OF_A_CACHE)
def cache(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The cache's folder; goes on if begun.")
    ],
    store: Annotated[
        str | None, typer.Option("--store", help="float32 or float16.  [default: float32]")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", metavar="K", help="Keep the K highest logits, and the others' sum."
        ),
    ] = None,
    tail_temperature: Annotated[
        float | None,
        typer.Option(
            "--tail-temperature",
            help="At which that sum is right.  [default: the method's, else 1]",
        ),
    ] = None,
    config: Config = None,
    set_: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how large it would be; write nothing.")
    ] = False,
    quiet: Quiet = False,
    json_: Json = False,
    teacher_model: Annotated[
        str | None,
        typer.Option(
            "--teacher-model",
            help="Repeat file.py:function, if the teacher's run has one.",
            rich_help_panel="Networks and method",
        ),
    ] = None,
    *,
    options: dict[RunOption, Any],
) -> None:
    """Store what a teacher says of all images: runs then learn from it without the teacher.

    With random crops or mirrorings, say how many epochs of them are stored (--augment-cycle);
    runs go through these again and again. Name the method, if it is to be one that shows its
    teacher further views or asks more of it than logits.
    """
    from limbeck.cli.cache import cache_logits, collect_cache

    values = collect_cache(
        options,
        config=config,
        overrides=set_ or [],
        dtype=store,
        top_k=top_k,
        tail_temperature=tail_temperature,
    )
    typed = typed_models(options, set_ or []) + _given(teacher_model)
    cache_logits(values, output, typed=typed, dry_run=dry_run, quiet=quiet, as_json=json_)


@app.command(cls=GroupedCommand, name="compare", short_help="Several methods, several seeds.")
@with_run_options(teacher=True, without=("method.name", "seed"))
def compare_methods(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The comparison's folder; goes on if begun.")
    ],
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="A,B", help="E.g. kd,fitnet,rkd; LABEL=METHOD renames."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="N", help="How many, or which, as 0,3,7.  [default: 3]"),
    ] = None,
    method_set: Annotated[
        list[str] | None,
        typer.Option(
            "--method-set", metavar="A.B=VALUE", help="One row's own, as kd.temperature=2."
        ),
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option("--tune", metavar="N", help="N trials for each method, on validation."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs at a time.  [default: one a device]"),
    ] = None,
    cohort: Annotated[
        int,
        typer.Option(
            "--cohort",
            metavar="N",
            min=1,
            help="So many methods of a seed share their teacher's passes.  [default: 1]",
        ),
    ] = 1,
    devices: Annotated[
        str | None, typer.Option("--devices", metavar="A,B", help="In turns, as cuda:0,cuda:1.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Of each run.  [default: cores by jobs]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="A comparison.json, or a run's config.json."),
    ] = None,
    set_: Set = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json_: Json = False,
    teacher_model: Annotated[
        str | None,
        typer.Option(
            "--teacher-model",
            help="Train this network first, as the teacher. Beside --teacher: see `distill`.",
            rich_help_panel="Networks and method",
        ),
    ] = None,
    independent_teacher: Annotated[
        str | None,
        typer.Option(
            "--independent-teacher",
            help="A run whose student is like the teacher and taught nobody: the control.",
            rich_help_panel="Networks and method",
        ),
    ] = None,
    *,
    options: dict[RunOption, Any],
) -> None:
    """Compare methods over seeds, beside the same student without distillation.

    What is there already is not made again: the same command continues an interrupted
    comparison, and with more --seeds or --methods it makes those alone.
    """
    from limbeck.cli.compare import collect_comparison, run_comparison

    values = collect_comparison(
        options,
        output=output,
        config=config,
        overrides=set_ or [],
        method_sets=method_set or [],
        methods=methods,
        seeds=seeds,
        teacher_model=teacher_model,
        independent_teacher=independent_teacher,
        tune=tune,
        threads=threads,
    )
    run_comparison(
        values,
        output,
        typed=typed_models(options, set_ or []) + _given(teacher_model),
        jobs=jobs,
        cohort=cohort,
        devices=devices,
        dry_run=dry_run,
        quiet=quiet,
        as_json=json_,
    )


@app.command(short_help="A comparison as one page of HTML.")
def report(
    folder: Annotated[Path, typer.Argument(help="A comparison's folder, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            "-o",
            help="The page alone, to this file.  [default: FOLDER/report.html and tables]",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Write a comparison's report, one HTML file that needs nothing else, and its tables.

    `compare` and `demo` end in it; this makes it anew, of what there is.
    """
    from limbeck.cli.report import write_report

    write_report(folder, out, as_json=json_)


@app.command(short_help="List the runs in a folder.")
def runs(
    folder: Annotated[Path, typer.Argument(help="It, and all below it, are looked through.")],
    method: Annotated[str | None, typer.Option("--method", help="These alone.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="These alone.")] = None,
    state: Annotated[
        str | None,
        typer.Option("--state", help="finished, running, unfinished, failed or damaged."),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="run, method, seed, epochs, val, test or state.")
    ] = "run",
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    json_: Json = False,
) -> None:
    """List the runs in a folder: method, seed, epochs, validation, test, state."""
    from limbeck.cli.browse import show_runs

    show_runs(
        folder, method=method, seed=seed, state=state, sort=sort, reverse=reverse, as_json=json_
    )


@app.command(short_help="Draw the epochs of runs.")
def curves(
    run: Annotated[list[Path], typer.Argument(help="Run folders, finished or not.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture: .png, .svg or .pdf.")
    ] = Path("curves.png"),
    metric: Annotated[
        str, typer.Option("--metric", help="As in metrics.jsonl: val.top1, train.loss, lr, ...")
    ] = "val.top1",
    json_: Json = False,
) -> None:
    """Draw one number of several runs over their epochs."""
    from limbeck.cli.browse import draw_curves

    draw_curves(run, output, metric=metric, as_json=json_)


@app.command(short_help="Continue an interrupted run or comparison.")
def resume(
    run: Annotated[Path, typer.Argument(help="An interrupted run's or comparison's folder.")],
    student: StudentModel = None,
    teacher: TeacherModel = None,
    others: OtherModels = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Continue an interrupted run, or comparison, to the end it would have had."""
    typed = [*_given(student, teacher), *filter(None, (others or "").split(","))]
    if (run / "comparison.json").is_file():
        from limbeck.cli.compare import resume_comparison

        resume_comparison(run, typed=typed, quiet=quiet, as_json=json_)
        return
    from limbeck.cli.run import resume_run

    resume_run(run, typed=typed, quiet=quiet, as_json=json_)


@app.command(name="eval", short_help="Judge a finished run's student and its teacher again.")
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    split: Annotated[str, typer.Option("--split", help="val, test or train.")] = "test",
    best: Best = False,
    device: Device = "auto",
    student: StudentModel = None,
    teacher: TeacherModel = None,
    json_: Json = False,
) -> None:
    """Judge a finished run's student again, and its teacher beside it.

    Training images are judged as they are, without augmentation, and with the labels that were
    kept for training.
    """
    from limbeck.cli.judge import evaluate_run

    evaluate_run(
        run,
        split=split,
        best=best,
        device=device,
        typed=_given(student, teacher),
        as_json=json_,
    )


@app.command(short_help="Classes of images, by student and teacher.")
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes shown for each.")] = 3,
    best: Best = False,
    device: Device = "auto",
    student: StudentModel = None,
    teacher: TeacherModel = None,
    json_: Json = False,
) -> None:
    """Classes and probabilities of images, the teacher's beside the student's."""
    from limbeck.cli.judge import predict_images

    predict_images(
        run,
        images,
        top=top,
        best=best,
        device=device,
        typed=_given(student, teacher),
        as_json=json_,
    )


@app.command(short_help="The networks; one's layers by name; or a teacher and student.")
def inspect(
    model: Annotated[
        str | None,
        typer.Argument(help="A model's name, file.py:function, or a run; none lists the names."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", "--teacher-model", help="With --student: a pair to compare."),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            "--model",
            help="The pair's student. Beside a run: repeat file.py:function, if the run has one.",
        ),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", min=2, help="[default: 100, digits 10]")
    ] = None,
    in_chans: Annotated[
        int | None, typer.Option("--in-chans", min=1, help="[default: 3, digits 1]")
    ] = None,
    img_size: Annotated[
        int | None, typer.Option("--img-size", min=1, help="[default: 32, digits 8]")
    ] = None,
    lipschitz: Annotated[
        bool,
        typer.Option(
            "--lipschitz",
            help="How the stages' maps of images go together, in a run's teacher and student.",
        ),
    ] = False,
    independent: Annotated[
        Path | None,
        typer.Option("--independent", help="A run of the same student that nobody taught."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Images for a model: see `distill`.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", help="The folder or zip of their files.")
    ] = None,
    cka: Annotated[
        bool,
        typer.Option(
            "--cka",
            help="How alike a run's student and teacher are, layer by layer; also into its folder, "
            "for the report.",
        ),
    ] = False,
    student_layers: Annotated[
        str | None,
        typer.Option("--student-layers", metavar="A,B", help="For --cka.  [default: the stages]"),
    ] = None,
    teacher_layers: Annotated[
        str | None, typer.Option("--teacher-layers", metavar="A,B", help="The same.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="For both: val, test or train.  [default: val]"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="For both: auto, cpu, cuda or cuda:N.  [default: auto]"),
    ] = None,
    json_: Json = False,
) -> None:
    """A network's layers by name: output shapes, parameters, multiply-adds.

    Any of the names can be given to a method that reads features. With --teacher and --student,
    and no MODEL: both side by side, where each method would attach, and what that costs. No
    weights are needed.
    """
    typed = _given(student, teacher)
    if cka:
        from limbeck.cli.similarity import show_cka

        show_cka(
            model,
            split=split,
            best=False,
            student_layers=student_layers,
            teacher_layers=teacher_layers,
            device=device or "auto",
            typed=typed,
            as_json=json_,
        )
        return
    if lipschitz:
        from limbeck.cli.lipschitz import show_lipschitz

        show_lipschitz(
            model,
            independent=independent,
            dataset=dataset,
            data_dir=data_dir,
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            split=split or "val",
            device=device or "auto",
            typed=typed,
            as_json=json_,
        )
        return
    if (independent, dataset, data_dir, split, device) != (None,) * 5 or (
        student_layers or teacher_layers
    ):
        raise SettingsError(
            "--independent, --dataset, --data-dir, --split and --device are for a Lipschitz "
            "profile, --split, --device and the layers for a map of CKA; add --lipschitz or "
            "--cka, or leave them out"
        )
    from limbeck.cli.inspect import inspect_model, inspect_models, list_models

    if model is None and teacher is None and student is None:
        list_models(as_json=json_)
    elif model is None and teacher is not None and student is not None:
        inspect_models(
            teacher,
            student,
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            as_json=json_,
        )
    elif model is None or teacher is not None:
        raise SettingsError(
            "give one MODEL to look at, or a pair by --teacher and --student; got "
            + ", ".join(
                f"{name} {value}"
                for name, value in (
                    ("MODEL", model),
                    ("--teacher", teacher),
                    ("--student", student),
                )
                if value is not None
            )
        )
    else:
        inspect_model(
            model,
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            typed=_given(student),
            as_json=json_,
        )


@app.command(short_help="Published weights to safetensors.")
def convert(
    file: Annotated[Path, typer.Argument(help="Weights as RepDistiller or mdistiller save them.")],
    model: Annotated[str, typer.Option("--model", help="The network that they are of.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="[default: FILE, ending in .safetensors]"),
    ] = None,
    json_: Json = False,
) -> None:
    """Read published weights, check that every one finds its place, write safetensors.

    What comes out is a --teacher-checkpoint for --teacher MODEL.
    """
    from limbeck.cli.convert import convert_weights

    convert_weights(file, model, output, as_json=json_)


@app.command(short_help="List the methods; or one method's card.")
def methods(
    name: Annotated[str | None, typer.Argument(help="One method's card.")] = None,
    json_: Json = False,
) -> None:
    """List the methods; or one method's card: formula, defaults, source, departures."""
    from limbeck.cli.methods import show_methods

    show_methods(name, as_json=json_)


@app.command(short_help="List published settings; or print one.")
def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, or a pattern.")] = None,
    json_: Json = False,
) -> None:
    """List the settings behind published figures; or print one with its source."""
    from limbeck.cli.recipes import show_recipes

    show_recipes(name, as_json=json_)


@app.command(short_help="Run published settings again.")
def reproduce(
    names: Annotated[list[str], typer.Argument(help="Recipes, or patterns of their names.")],
    data_dir: Annotated[
        str, typer.Option("--data-dir", help="CIFAR-100, or its images in train/ and test/.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the run folders go.")
    ] = Path("reproduced"),
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="N", help="How many, or which, as 0,3,7.")
    ] = "1",
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="A run, or weights.  [default: trained first]"),
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Keep a tenth of the training images apart.")
    ] = False,
    results: Annotated[
        Path, typer.Option("--results", help="The file that each run adds a line to.")
    ] = Path("results/cifar100.csv"),
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Run published settings again, seed by seed, and write down what came out.

    The test split is read once a run, after the last epoch. What is finished is not run again.
    """
    from limbeck.cli.compare import seed_list
    from limbeck.cli.recipes import reproduce_recipes

    reproduce_recipes(
        names,
        data_dir=data_dir,
        output=output,
        seeds=seed_list(seeds),
        teacher=teacher,
        protocol="held-out" if held_out else "published",
        results=results,
        device=device,
        quiet=quiet,
    )


@app.command(short_help="Results beside published figures.")
def results(
    file: Annotated[Path, typer.Argument(help="What `reproduce` wrote.")] = Path(
        "results/cifar100.csv"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("docs/results.md"),
) -> None:
    """Write a page of all results beside the published figures."""
    from limbeck.cli.recipes import write_results

    write_results(file, out)


@app.command(short_help="What was distilled? Students beside their teacher.")
def analyse(
    run: Annotated[Path, typer.Argument(help="A comparison's folder, or a run's.")],
    method: Annotated[
        str | None, typer.Option("--method", help="Row of a comparison.  [default: the first]")
    ] = None,
    independent: Annotated[
        list[Path] | None,
        typer.Option("--independent", help="A run that the teacher did not teach; repeatable."),
    ] = None,
    experiments: Annotated[
        str | None, typer.Option("--experiments", metavar="A,B", help="Some of them.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The quick ones, fewer images.")] = False,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Test images.  [default: 5000, quick 500]")
    ] = None,
    other_images: Annotated[
        Path | None,
        typer.Option("--other-images", exists=True, help="domains: pictures of another kind."),
    ] = None,
    cue_conflict: Annotated[
        Path | None,
        typer.Option(
            "--cue-conflict", exists=True, help="shape: pictures as SHAPE/SHAPE1-TEXTURE2.png."
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups", exists=True, dir_okay=False, help="bias: CSV of index (test) and group."
        ),
    ] = None,
    corrupted: Annotated[
        Path | None,
        typer.Option(
            "--corrupted", exists=True, file_okay=False, help="corruptions: files of CIFAR-C."
        ),
    ] = None,
    soft_label_control: Annotated[
        bool,
        typer.Option("--soft-label-control", help="invariance: also train students of noise."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="[default: RUN/analysis/METHOD]")
    ] = None,
    device: Device = "auto",
    student: StudentModel = None,
    teacher: TeacherModel = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Ask what a teacher passed on: agreement, boundaries, invariances, robustness and more.

    Each answer stands beside that of an independent student, of the same architecture and without
    the teacher. What is there already is not asked again.
    """
    from limbeck.analysis.base import Given
    from limbeck.cli.analyse import analyse_runs

    analyse_runs(
        run,
        method=method,
        independent=independent or [],
        experiments=experiments,
        quick=quick,
        num_images=images,
        given=Given(
            other_images=other_images,
            cue_conflict=cue_conflict,
            groups=groups,
            corrupted=corrupted,
        ),
        soft_label_control=soft_label_control,
        out=out,
        device=device,
        typed=_given(student, teacher),
        as_json=json_,
        quiet=quiet,
    )


@app.command(short_help="Versions, devices, disk; and how to mend what is wrong.")
def doctor(json_: Json = False) -> None:
    """Versions, devices and disk, and the remedy for what is wrong."""
    from limbeck.cli.doctor import examine

    examine(as_json=json_)


def _given(*names: str | list[str] | None) -> list[str]:
    found: list[str] = []
    for name in names:
        found += [name] if isinstance(name, str) else name or []
    return found
