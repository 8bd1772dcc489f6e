"""The text of sbatch files: as it was read and approved, clean for shellcheck, and safe for any path."""

import subprocess
from pathlib import Path

import pytest

from job.errors import InputError
from slurm import chain as chains
from slurm import cluster as clusters
from slurm import jobs
from tests.conftest import REPOSITORY
from tests.slurm.sandbox import missing_packages, skip_or_fail

GOLDEN = Path(__file__).parent / "golden"
CLUSTER = """
    account = "biomed"
    [gpu]
    partition = "gpu"
    gpus = 8
    cpus = 96
    memory = "0"
    directives = ["--constraint=h100"]
    [cpu]
    partition = "cpu"
    cpus = 32
    memory = "128G"
    time = "12:00:00"
"""
VIRTUAL_ENVIRONMENT = (
    CLUSTER
    + """
    [environment]
    modules = ["cuda/12.8", "gcc/13"]
    virtual_environment = "/home/me/my envs/bio"
    interface = "ib0"
    scratch = "/scratch"
    variables = { HF_HUB_OFFLINE = "1" }
"""
)
PYXIS = (
    CLUSTER
    + """
    [environment]
    container = { image = "/images/bio.sqsh", mounts = ["/data", "/models:/m"] }
    [preflight]
    bandwidth_gbytes = 40.0
"""
)
APPTAINER = (
    CLUSTER
    + """
    [environment]
    setup = ["module load apptainer"]
    container = { image = "/images/bio.sif", tool = "apptainer", mounts = ["/data"] }
    [preflight]
    use = false
    [restart]
    without_progress = 5
"""
)
CHAIN = """
    directory = "runs/corpus"
    [[stages]]
    name = "shards"
    kind = "shards"
    config = "configs/corpus.toml"
    parts = 16
    [[stages]]
    name = "suites"
    kind = "eval"
    nodes = 1
    gpus = 1
    arguments = ["models/7b", "--data", "benchmarks"]
    each = [["--suite", "qa", "--out", "scores/qa"], ["--suite", "biogpt", "--out", "scores/it's"]]
"""
WATCH = """
    directory = "runs/watched"
    [[stages]]
    name = "pretrain"
    kind = "pretrain"
    config = "configs/llama2-7b.toml"
    [[stages]]
    name = "watch"
    kind = "watch"
    gpus = 1
    arguments = ["--suite", "qa", "--data", "benchmarks"]
    [[stages]]
    name = "export"
    kind = "export"
"""
CASES = {
    "one-node": (CLUSTER, "configs/llama2-7b.toml", [], None),
    "eight-nodes": (CLUSTER, "configs/llama2-7b-64gpu.toml", ["--train.micro_batch", "2"], 8),
    "container-pyxis": (PYXIS, "configs/llama2-7b-64gpu.toml", [], 8),
    "container-apptainer": (APPTAINER, "configs/biomedgpt-10b.toml", [], 1),
    "virtual-environment": (VIRTUAL_ENVIRONMENT, "configs/llama2-7b.toml", [], None),
    "watch": (CLUSTER, "watch", [], None),
    "array": (VIRTUAL_ENVIRONMENT, "chain", [], None),
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Texts of all sbatch files of a case, by stage."""
    monkeypatch.chdir(REPOSITORY)

    def texts(cluster, config, changes=(), nodes=None, directory="/home/me/biomedgpt"):
        (tmp_path / "cluster.toml").write_text(cluster)
        own = {"chain": CHAIN, "watch": WATCH}.get(config)
        (tmp_path / "chain.toml").write_text(own or "")
        chain = chains.read(tmp_path / "chain.toml" if own else Path(config), changes, nodes)
        source = Path("configs/chain.toml") if own else chain.source
        place = jobs.Place(source, chain.directory, Path(directory), "/opt/biomedgpt/bin/python")
        read = clusters.load(tmp_path / "cluster.toml")
        return {stage.name: jobs.script(stage, read, place) for stage in chain.stages}

    return texts


@pytest.mark.parametrize("case", CASES)
def test_golden(case, write, request):
    for name, text in write(*CASES[case]).items():
        path = GOLDEN / f"{case}-{name}.sbatch"
        if request.config.getoption("--write-golden"):
            path.write_text(text)
        assert text == path.read_text(), f"{path}; if it is meant to be so: pytest --write-golden"


def test_shellcheck_is_content():
    scripts = sorted(GOLDEN.glob("*.sbatch"))
    assert len(scripts) == 16
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    if reason := missing_packages("shellcheck"):
        skip_or_fail(reason)
    # SC1091: the virtual environment is not here to be followed
    done = subprocess.run(["shellcheck", "--exclude=SC1091", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_names_that_no_line_can_hold_are_refused(write):
    with pytest.raises(InputError, match="line break"):
        write(CLUSTER, "configs/llama2-7b.toml", directory="/home/me\n#SBATCH --wrap=evil")


@pytest.mark.parametrize(
    "text, words",
    [
        ("[gpu]\ngpu = 8", "did you mean"),
        ('[environment.variables]\nWANDB_API_KEY = "abc"', "looks like a secret"),
        ('[environment]\nsetup = ["a\\nb"]', "line break"),
        ('[gpu]\ntime = "1 day"', "gpu.time"),
        ('[gpu]\ndirectives = ["constraint=h100"]', "no option of sbatch"),
    ],
)
def test_wrong_cluster_descriptions(text, words, tmp_path):
    (tmp_path / "cluster.toml").write_text(text)
    with pytest.raises(InputError, match=words):
        clusters.load(tmp_path / "cluster.toml")


@pytest.mark.parametrize(
    "stages, words",
    [
        ('[[stages]]\nname = "a"\nkind = "shards"', "'config' is missing"),
        ('[[stages]]\nname = "a"\nkind = "export"', "needs a stage of kind pretrain or align"),
        ('[[stages]]\nname = "a/b"\nkind = "command"\ncommands = ["true"]', "letters, digits"),
        ('[[stages]]\nname = "a"\nkind = "command"\ncommands = ["true"]\nafter = ["b"]', "no stage before it"),
        ('[[stages]]\nname = "a"\nkind = "pretrain"\nconfig = "chain.toml"', "stage 'a': chain.toml: unknown key"),
        ("", "there are no"),
    ],
)
def test_wrong_chains(stages, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "chain.toml").write_text(f'directory = "runs"\n{stages or "stages = []"}\n')
    with pytest.raises(InputError, match=words):
        chains.read(Path("chain.toml"), [], None)
