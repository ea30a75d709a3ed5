"""Stand-ins of slime's two tools: their arguments, and what they write in the order they write it. No GPU.

What is written was written by the real torch once, and is copied, because importing torch takes seconds. `DIE_AT=n` in
the environment kills the stand-in before step n; `FAIL=1` lets it fail with a traceback.
"""

import functools
import tempfile
from pathlib import Path

from tests.plugins.slime.hf_folders import SHARDS, write_torch_dist

COMMON = """
import argparse, json, os, shutil, signal
from pathlib import Path

SHARDS = {shards!r}
step = 0

def at(what):
    global step
    step += 1
    print("step", step, what, flush=True)
    if os.environ.get("DIE_AT") == str(step):
        os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("FAIL"):
    raise ValueError("no such layer: decoder.layers.7")
parser = argparse.ArgumentParser()
"""
CONVERT = (
    COMMON
    + """
parser.add_argument("--hf-checkpoint", required=True)
parser.add_argument("--save", required=True)
args, rest = parser.parse_known_args()
print("FLAGS", json.dumps(rest), flush=True)
save = Path(args.save)
at("start")
shutil.copytree({template!r}, save / "iter_0000001")
at("written")
(save / "latest_checkpointed_iteration.txt").write_text("1")
at("tracker says 1")
(save / "latest_checkpointed_iteration.txt").write_text("release")
at("tracker says release")
shutil.move(save / "iter_0000001", save / "release")
at("moved")
"""
)
EXPORT = (
    COMMON
    + """
parser.add_argument("--input-dir", required=True)
parser.add_argument("--output-dir", required=True)
parser.add_argument("--origin-hf-dir")
parser.add_argument("--vocab-size", type=int)
parser.add_argument("-f", "--force", action="store_true")
args = parser.parse_args()
out = Path(args.output_dir)
if out.exists() and not args.force:
    raise ValueError("Output directory exists")
assert (Path(args.input_dir) / "common.pt").is_file(), args.input_dir
at("start")
out.mkdir(parents=True)
(out / "model.safetensors.index.json").write_text(json.dumps({{"metadata": {{}}, "weight_map": SHARDS}}))
origin = Path(args.origin_hf_dir)
for shard in SHARDS.values():
    at("shard")
    shutil.copy(origin / shard, out / shard)
at("assets")
for path in origin.iterdir():
    if not path.name.endswith(".safetensors") and path.name != "model.safetensors.index.json":
        shutil.copy(path, out / path.name)
at("done")
"""
)


@functools.cache
def _template() -> str:
    return str(write_torch_dist(Path(tempfile.mkdtemp(prefix="ts-torch-dist-")) / "release"))


def write_tools(slime_dir: Path) -> Path:
    """A folder of slime with the two tools in it."""
    (slime_dir / "tools").mkdir(parents=True)
    for name, text in (("convert_hf_to_torch_dist.py", CONVERT), ("convert_torch_dist_to_hf.py", EXPORT)):
        (slime_dir / "tools" / name).write_text(text.format(shards=SHARDS, template=_template()))
    return slime_dir
