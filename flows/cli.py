"""LLM post-training on rented GPU pods, as Prefect flows."""

# Each command is a few lines over `tasks/`; nothing heavy is imported before it is needed.

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blocks.recipe import StageName, check_run_id, home, load_recipe
from plugins.errors import TrainstackError, UserError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Make prompt data.")
app.add_typer(data_app, name="data")
# A table in a pipe is for a program or a pager: nothing of it may be cut off.
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 250)
err = Console(stderr=True)

RunId = Annotated[str, typer.Argument(help="Id of the run, as printed at its start.")]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the recipe.")],
    stages: Annotated[str | None, typer.Option(help="Comma-separated: sft,rl. Default: those the recipe has.")] = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Go on with, or name, this run.")] = None,
) -> None:
    """Carry a recipe through, from here, and wait for its end."""
    plan = load_recipe(recipe)
    wanted = _stages(stages) if stages else plan.stages()
    for name in wanted:
        plan.stage(name)
    if run_id:
        check_run_id(run_id)
    from tasks.check_recipe import check_recipe

    check_recipe(plan, wanted)  # bad input ends here, before any server is started
    from flows.launch import launch
    from tasks.control_plane import use_api

    try:
        api_url = use_api()
    except KeyboardInterrupt:
        err.print("Stopped before anything was rented; `trainstack down` ends a server that still starts.")
        raise typer.Exit(130) from None
    err.print(f"Prefect: {api_url.removesuffix('/api')}  (stop the local servers with `trainstack down`)")
    raise typer.Exit(launch(plan, wanted, run_id))


@app.command()
def status(
    run_id: Annotated[str | None, typer.Argument(help="Id of a run; without it, the newest runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Stable JSON, documented in docs/en/status.md.")] = False,
) -> None:
    """Show a run: stages, checkpoints, pods, cost."""
    from prefect.client.orchestration import get_client

    from tasks.control_plane import known_api
    from tasks.status import list_runs, run_status
    from tasks.status_view import runs_table, status_view

    known_api()
    with get_client(sync_client=True) as client:
        found = run_status(client, run_id) if run_id else list_runs(client)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        out.print(status_view(found) if isinstance(found, dict) else runs_table(found))


@app.command()
def report(
    run_id: RunId,
    picture: Annotated[Path | None, typer.Option(help="Write the time line to this PNG file.")] = None,
) -> None:
    """Show what a run took and what its interruptions cost: effective training time, each loss, cost."""
    from prefect.client.orchestration import get_client

    from tasks.control_plane import known_api
    from tasks.report import report_of
    from tasks.report_view import show_report
    from tasks.timeline import timeline_png

    known_api()
    with get_client(sync_client=True) as client:
        found = report_of(client, check_run_id(run_id))
    show_report(out, found)
    if picture:
        picture.write_bytes(timeline_png(found))
        err.print(f"time line: {picture}")


@app.command()
def push(
    run_id: RunId,
    to: Annotated[str, typer.Option(help="hub://user/repo or hub://user/repo@branch; made when missing, private.")],
    stage: Annotated[str | None, typer.Option(help="sft or rl; default: the later one that has a checkpoint.")] = None,
    iteration: Annotated[int | None, typer.Option(help="Which checkpoint; default: the newest.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repo public, if it must be made.")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Optimizer and data state too, not the weights only.")] = False,
) -> None:
    """Push a sealed checkpoint to the Hugging Face Hub: inside a pod, through the run's pod, or from the store."""
    from tasks.push_files import as_data, push_from_save_dir

    if stage not in (None, "sft", "rl"):
        raise UserError(f"--stage {stage!r}: expected sft or rl.")
    pod = Path.home() / "trainstack"
    if (pod / "runs" / check_run_id(run_id)).is_dir():  # we are inside the pod
        done = as_data(push_from_save_dir(pod, run_id, stage, iteration, to, public=public, whole=whole))
    else:
        from prefect.client.orchestration import get_client

        from tasks.control_plane import known_api
        from tasks.push_checkpoint import push_run

        known_api()
        with get_client(sync_client=True) as client:
            said = partial(err.print, highlight=False, markup=False)
            done = push_run(client, run_id, to, stage=stage, iteration=iteration, log=said, public=public, whole=whole)
    out.print(f"{done['url']}\nrevision {done['revision']}, {done['files']} files", highlight=False)


@app.command()
def logs(
    run_id: RunId,
    stage: Annotated[str | None, typer.Option(help="sft or rl; without it, the pipeline's own log.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Attempt number; default: the newest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the flow run ends.")] = False,
) -> None:
    """Print the log of a run, or of one attempt of a stage, also after its pod is gone."""
    from tasks.control_plane import known_api
    from tasks.run_logs import print_logs

    known_api()
    print_logs(run_id, stage, attempt, follow=follow)


@app.command()
def stop(run_id: RunId) -> None:
    """Cancel a run, seal what is complete, give its pods back."""
    from tasks.control_plane import known_api
    from tasks.stop_run import stop_run

    known_api()
    for line in stop_run(check_run_id(run_id)):
        err.print(line)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the recipe.")],
    commands: Annotated[bool, typer.Option("--commands", help="Print each stage's command line too.")] = False,
    lium: Annotated[bool, typer.Option("--lium-command", help="Print only the `lium up` line for this offer.")] = False,
) -> None:
    """Show what a run would rent, why, what it could cost, and whether its stages fit. Rents nothing."""
    wanted = load_recipe(recipe)
    from tasks.check_recipe import check_keys
    from tasks.lium_account import open_account
    from tasks.lium_command import lium_command
    from tasks.plan import make_plan
    from tasks.plan_view import plan_view
    from tasks.stage_plan import plan_recipe, recipe_view

    check_keys(wanted)
    found = None if lium else plan_recipe(wanted)
    with _known_client() as client:
        from tasks.common_knowledge import resting_hosts

        resting = resting_hosts(client) if client and wanted.pod.bad_host_hours else {}
    if found is not None:
        out.print(recipe_view(found, commands=commands))
    made = make_plan(wanted, open_account(wanted), resting, time.time())
    if lium:
        print(lium_command(made))
    else:
        out.print(plan_view(made))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="launch_stack.yaml of the older stack.")],
) -> None:
    """Print the recipe that a launch_stack.yaml of the older stack becomes; what became of each key goes to stderr."""
    from tasks.import_stack import import_stack

    made = import_stack(file)
    print(made.recipe, end="")
    for fate in made.fates:
        err.print(str(fate), highlight=False, markup=False, soft_wrap=True)


@app.command()
def export(
    iteration: Annotated[Path, typer.Argument(help="<save dir>/iter_0000019 of a checkpoint without an export.")],
    output: Annotated[Path, typer.Argument(help="Hugging Face folder to make.")],
    origin: Annotated[Path, typer.Option(help="Hugging Face folder that training began with.")],
    slime_dir: Annotated[Path, typer.Option(help="Folder of slime.")] = Path("/root/slime"),
    megatron_dir: Annotated[Path, typer.Option(help="Folder of Megatron-LM.")] = Path("/root/Megatron-LM"),
    python: Annotated[str, typer.Option(help="Interpreter that has slime.")] = "python3",
) -> None:
    """Make a Hugging Face folder of a Megatron checkpoint with slime's own tool, and check it. Run it on the pod."""
    from plugins.slime.export import check_export_inputs, export_by_tool

    check_export_inputs(iteration.absolute(), origin.absolute())
    export_by_tool(
        iteration.absolute(),
        output.absolute(),
        origin.absolute(),
        slime_dir=slime_dir,
        megatron_dir=megatron_dir,
        log_file=output.with_name(f"{output.name}.log"),
        python=python,
    )
    err.print(f"{output}: every shard and tensor is there")


@app.command()
def ps() -> None:
    """List pods: host, GPU use, price, cost so far, time to the dead-man end."""
    from tasks.lium_account import accounts_in_reach
    from tasks.pods_view import pods_in_reach, pods_table

    with _known_client() as client:
        views = pods_in_reach(client, accounts_in_reach())
    out.print(pods_table(views) if views else "no pods")


@app.command()
def hosts(
    forget: Annotated[str | None, typer.Option(help="Executor id, or 'all': rent there again from now on.")] = None,
) -> None:
    """List hosts that are left out because they failed or lost a pod."""
    from prefect.client.orchestration import get_client

    from tasks.common_knowledge import forget_host, resting_hosts
    from tasks.control_plane import known_api

    known_api()
    table = Table("host", "rests until (UTC)", "why")
    with get_client(sync_client=True) as client:
        for executor_id, rest in resting_hosts(client).items():
            if forget in (executor_id, "all"):
                forget_host(client, executor_id)
                err.print(f"{executor_id} forgotten")
            elif rest.until > time.time():
                table.add_row(
                    executor_id, f"{datetime.fromtimestamp(rest.until, UTC):%Y-%m-%d %H:%M}", escape(rest.why)
                )
    out.print(table if table.row_count else "no host is left out")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ssh(ctx: typer.Context, run_id: RunId) -> None:
    """Open a shell on a run's pod, or run the words that follow there."""
    from tasks.lium_account import accounts_in_reach
    from tasks.pods_view import become, pods_in_reach, ssh_argv

    accounts = accounts_in_reach()
    with _known_client() as client:
        argv = ssh_argv(check_run_id(run_id), pods_in_reach(client, accounts), accounts, ctx.args)
    become(argv)


@app.command()
def reap(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be given back, end nothing.")] = False,
    grace_minutes: Annotated[float, typer.Option(help="How long a run that crashed keeps its pod.")] = 15.0,
) -> None:
    """Give back pods that have our name and no living run; touches nothing else."""
    from prefect.client.orchestration import get_client

    from tasks.control_plane import known_api
    from tasks.lium_account import accounts_in_reach
    from tasks.reap import look
    from tasks.reap import reap as give_back

    known_api()
    table = Table("pod", "run", "verdict", "why")
    with get_client(sync_client=True) as client:
        for account in accounts_in_reach().values():
            judged = look(client, account, grace_minutes)
            for one in judged:
                table.add_row(one.pod.name, one.run_id or "", one.keep or "[red]orphan[/]", escape(one.why))
            for line in [] if dry_run else give_back(client, account, judged):
                err.print(line, highlight=False)
    out.print(table if table.row_count else "no pods")


@app.command()
def gateway(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any.")] = 4300,
) -> None:
    """Run the gateway as a service: what a public `api_url` for pods must lead to, instead of to Prefect itself."""
    from plugins.gateway.__main__ import main as serve_gateway
    from tasks.api_door import key_file
    from tasks.control_plane import known_api

    argv = ["--upstream", known_api(), "--key-file", str(key_file()), "--host", host, "--port", str(port)]
    raise typer.Exit(serve_gateway(argv))


@app.command()
def serve() -> None:
    """Start the local Prefect server, the Lium emulator and a worker for pipelines; deploy the flows."""
    from prefect.client.orchestration import get_client

    from tasks.control_plane import activate_reaper, ensure_deployments, use_api, write_prefect_toml
    from tasks.local_servers import ensure_emulator, ensure_pipeline_worker

    api_url = use_api()
    emulator = ensure_emulator()
    with get_client(sync_client=True) as client:
        ensure_deployments(client)
        ensure_pipeline_worker(api_url)
        activate_reaper(client)
    write_prefect_toml(api_url)
    out.print(f"Prefect UI  {api_url.removesuffix('/api')}\nLium emulator  {emulator}")
    out.print(
        "Start a run:  prefect deployment run 'sft-pipeline/lium' --param recipe=deployments/recipes/demo-sft.yaml"
    )
    out.print("Stop it all:  trainstack down")


@app.command()
def down(
    force: Annotated[bool, typer.Option("--force", help="Also when a run is still being carried through.")] = False,
) -> None:
    """Stop the local servers: pipelines' worker, Prefect, emulator."""
    from tasks.steering import runs_in_hand

    if (held := runs_in_hand()) and not force:
        raise UserError(
            f"Still being carried through: {', '.join(held)}. `trainstack stop` them first, or use --force."
        )
    from tasks.control_plane import remove_prefect_toml
    from tasks.local_servers import stop_all

    remove_prefect_toml()
    for line in stop_all() or ["no local server was running"]:
        err.print(line)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def emulator(ctx: typer.Context) -> None:
    """Run the Lium emulator in the foreground; `--help` lists its options. Its state is kept with trainstack's own."""
    from plugins.lium.emulator.__main__ import main as emulate

    given = any(word.partition("=")[0] == "--state" for word in ctx.args)
    raise typer.Exit(emulate(ctx.args if given else ["--state", str(home() / "emulator"), *ctx.args]))


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="YAML file of a recipe: check also what it needs.")] = None,
) -> None:
    """Check what this machine has for the demo and for real runs, and say how to get what it lacks."""
    from tasks.doctor import examine

    table = Table("check", "for", "found", "what to do", title="trainstack doctor")
    findings = examine(load_recipe(recipe) if recipe else None)
    for found in findings:
        mark = "[green]✓[/] " if found.ok else "[red]✗[/] "
        table.add_row(found.what, found.needed_for, mark + escape(found.found), escape(found.remedy))
    out.print(table)
    raise typer.Exit(0 if all(found.ok or not found.required for found in findings) else 1)


@app.command()
def image(
    repository: Annotated[str, typer.Argument(help="Where to push it: registry/name, or name at Docker Hub.")],
    tag: Annotated[str | None, typer.Option(help="Default: from what the image is made of.")] = None,
    base: Annotated[str | None, typer.Option(help="Another image of slime to start from.")] = None,
    no_push: Annotated[bool, typer.Option("--no-push", help="Build it for this machine's Docker only.")] = False,
) -> None:
    """Build the image that pods run and push it; prints what the recipe should say."""
    from tasks.build_image import build_image

    said = partial(err.print, highlight=False, markup=False, soft_wrap=True)
    made = build_image(repository, tag, push=not no_push, base=base, log=said)
    words = f"pod: {{image: {made.pinned}}}" if made.digest else f"{made.name}: built, not pushed"
    out.print(words, highlight=False, markup=False, soft_wrap=True)


@data_app.command("gsm8k")
def data_gsm8k(source: Path, target: Path) -> None:
    """Turn GSM8K rows (question, answer) into chat rows; TARGET ends in .jsonl or .parquet."""
    from plugins.datasets.gsm8k import convert

    counts = convert(source, target)
    out.print(f"{counts.rows} rows written to {target}")


@data_app.command("arithmetic-sft")
def data_arithmetic_sft(target: Path, rows: int = 400, seed: int = 0, max_operand: int = 9) -> None:
    """Write chat rows about small sums for SFT."""
    from plugins.datasets.arithmetic import chats

    out.print(f"{chats(target, rows, seed, max_operand)} rows written to {target}")


@data_app.command("arithmetic-rl")
def data_arithmetic_rl(target: Path, rows: int = 100, seed: int = 0, max_operand: int = 9) -> None:
    """Write prompt rows about small sums for RL."""
    from plugins.datasets.arithmetic import prompts

    out.print(f"{prompts(target, rows, seed, max_operand)} rows written to {target}")


@contextmanager
def _known_client() -> Iterator["SyncPrefectClient | None"]:
    """A client of the Prefect API that is known here; None where none runs."""
    from prefect.client.orchestration import get_client

    from tasks.control_plane import api_answers, known_api

    try:
        known_api()
    except UserError:
        yield None
        return
    with get_client(sync_client=True) as client:
        yield client if api_answers(client) else None  # it may be starting


def _stages(words: str) -> list[StageName]:
    known: dict[str, StageName] = {"sft": "sft", "rl": "rl"}
    names = [word.strip() for word in words.split(",") if word.strip()]
    wrong = [name for name in names if name not in known]
    if wrong or not names or len(set(names)) != len(names):
        raise UserError(f"--stages {words!r}: expected sft, rl or sft,rl.")
    return [known[name] for name in sorted(names, reverse=True)]


def script(*stages: StageName) -> NoReturn:
    """What `python flows/<name>.py RECIPE [--run-id ID]` does: `trainstack run` with these stages."""
    main(["run", "--stages", ",".join(stages), *sys.argv[1:]])


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; errors made on purpose become one message and exit code 2 (the user's) or 1."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    try:
        app(args=argv, standalone_mode=True)
    except UserError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except TrainstackError as error:
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "plugins.errors")
        err.print(f"[red]{name}:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except httpx.HTTPError as error:
        err.print(
            f"[red]The Prefect API does not answer:[/] {escape(type(error).__name__)}: {escape(str(error))}. "
            "Is it still starting? `trainstack doctor` shows the local servers.",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
