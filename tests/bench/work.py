"""One measured piece of work in a process of its own: `python -m tests.bench.work WHAT SOURCE TARGET`.

Prints a JSON object: seconds, and peak memory in MB (the process's own, of what it used beyond a bare start).
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RUN, STAGE = "bench", "sft"


def ours(save_dir: Path, uri: str) -> None:
    """Seal and store through the publisher, as a stage does: bytes are read once where the store can take them."""
    from plugins.checkpoints.publisher import Origin, Publisher
    from plugins.checkpoints.stores.open import open_store

    store = open_store(uri)
    store.check()
    publisher = Publisher([store], save_dir, Origin(RUN, STAGE, 1, 1, "plain", export=False), keep=1, log=print_error)
    publisher.offer(1)
    publisher.finish(3600, anywhere=True)  # a volume is not seen from afar
    publisher.stop()


def cp(save_dir: Path, target: str) -> None:
    """`cp -r`, then flushed to the disk: what is not is not durable."""
    subprocess.run(["cp", "-r", str(save_dir), target], check=True)
    subprocess.run(["sync", "-f", target], check=True)


def boto3_upload(save_dir: Path, target: str) -> None:
    """boto3's own `upload_file` for each file: what `aws s3 cp` does."""
    import boto3

    bucket, _, prefix = target.partition("/")
    client = boto3.client("s3")
    for file in sorted(save_dir.rglob("*")):
        if file.is_file():
            client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(save_dir)}")


def upload_folder(save_dir: Path, target: str) -> None:
    """huggingface_hub's own `upload_folder`."""
    from huggingface_hub import HfApi

    repo, _, prefix = target.partition("#")
    HfApi().upload_folder(folder_path=save_dir, repo_id=repo, path_in_repo=prefix, commit_message="bench")


def memory_kb(name: str) -> int:
    """A line of /proc/self/status: VmRSS is resident memory now, VmHWM its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def print_error(line: str) -> None:
    print(line, file=sys.stderr)


WORK: dict[str, Callable[[Path, str], None]] = {
    "ours": ours,
    "cp": cp,
    "boto3": boto3_upload,
    "upload_folder": upload_folder,
}


def main(what: str, source: str, target: str) -> None:
    """Do the work once and say what it took."""
    if what == "ours":  # imports are not what is measured
        import plugins.checkpoints.publisher
        import plugins.checkpoints.stores.open  # noqa: F401
    if "s3" in target or what == "boto3":
        import boto3

        boto3.client("s3")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory_kb("VmRSS")
    since = time.perf_counter()
    WORK[what](Path(source), target)
    seconds = time.perf_counter() - since
    peak = memory_kb("VmHWM") - before
    print(json.dumps({"seconds": seconds, "peak_mb": peak / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
