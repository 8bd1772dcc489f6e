"""The text of sbatch files: as it was read and approved, clean for shellcheck, and safe for any path."""

import os
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
    with pytest.raises(InputError, match="has a control character or a backslash"):
        write(CLUSTER, "configs/llama2-7b.toml", directory="/home/me\n#SBATCH --wrap=evil")


@pytest.mark.parametrize(
    "text, words",
    [
        ("[gpu]\ngpu = 8", "did you mean"),
        ('[environment.variables]\nWANDB_API_KEY = "abc"', "looks like a secret"),
        ('[environment.variables]\nWANDB_APIKEY = "abc"', "WANDB_APIKEY looks like a secret"),
        ('[environment.variables]\nMYPASS = "abc"', "MYPASS looks like a secret"),
        ('[environment.variables]\nhttp_proxy = "http://u:p@h"', "'://u:p...' looks like a secret"),
        ('[environment]\nsetup = ["export WANDB_API_KEY=abcdef"]', "WANDB_API_KEY=... looks like a secret"),
        ('[gpu]\ndirectives = ["--export=ALL,HF_TOKEN=abcdef"]', "HF_TOKEN=... looks like a secret"),
        ('[environment]\nsetup = ["wandb login 0123456789abcdef0123456789abcdef01234567"]', "'wandb ...' looks like"),
        ('[environment]\nsetup = ["tool --password hunter22"]', "--password ... looks like a secret"),
        ('[environment]\nsetup = ["tool --api-key=abcdef"]', "api-key=... looks like a secret"),
        ('[environment]\nsetup = ["aws configure set aws_secret_access_key abc"]', "aws_secret_access_key ... looks"),
        ("[environment]\nsetup = [\"curl -H 'Authorization: Bearer abcdefgh1'\"]", "'Bearer...' looks like a secret"),
        ('[environment]\nsetup = ["a\\nb"]', "line break"),
        ('[environment]\nvirtual_environment = "e"\ncontainer = { image = "i" }', "name one of both"),
        ("[gpu]\ntime = 24", 'key "gpu.time": Expected a str. Got value: 24; text is written in quotes'),
        ('[environment]\ncontainer = { tool = "podman" }', "Expected one of 'pyxis', 'apptainer'. Got value: podman"),
        ('[gpu]\ntime = "1 day"', "gpu.time"),
        ('[gpu]\ndirectives = ["constraint=h100"]', "no option of sbatch"),
        ('[gpu]\ngpu_type = "h100 x"', "gpu.gpu_type is 'h100 x'"),
        ("[restart]\nsignal_seconds = -300", "restart.signal_seconds is -300; it must be between 1 and 65,535"),
        ("[restart]\nwithout_progress = -1", "restart.without_progress is -1; it must be at least 0"),
        ("[preflight]\nseconds = 0.0", "preflight.seconds is 0.0; it must be between 10"),
        ("[preflight]\nfree_gpu_memory = 90.0", "preflight.free_gpu_memory is 90.0; it must be between 0 and 1"),
        ("[preflight]\nclock_seconds = nan", "preflight.clock_seconds is nan"),
    ],
)
def test_wrong_cluster_descriptions(text, words, tmp_path):
    (tmp_path / "cluster.toml").write_text(text)
    with pytest.raises(InputError, match=words):
        clusters.load(tmp_path / "cluster.toml")


def test_what_is_no_secret(tmp_path):
    """What a shell looks up, files that hold a secret, and words that only sound like one."""
    (tmp_path / "cluster.toml").write_text("""
        [environment]
        setup = ["export WANDB_API_KEY=$(cat ~/.wandb)", "export HF_TOKEN=\\"$TOKEN\\"", "export SSH_KEY=~/.ssh/id"]
        variables = { TOKENIZERS_PARALLELISM = "true", HF_TOKEN_PATH = "/home/me/.token", BYPASS = "1" }
        container = { image = "docker://registry:5000/bio@sha256:ab" }
    """)
    clusters.load(tmp_path / "cluster.toml")
    for text in (
        "python x.py --max_tokens=4096 | sort --key=2",
        "MONKEY=no",
        "git checkout 0123456789abcdef0123456789abcdef01234567",
        "tool --password-file ~/.p --token $TOKEN --api-key '$KEY' --tokenizer models/llama",
        'curl -H "Authorization: Bearer $TOKEN"',
    ):
        assert clusters.secret_in(text) is None, text


def test_time_to_save_is_not_all_the_time(write):
    short = CLUSTER.replace('partition = "gpu"', 'time = "5"')
    with pytest.raises(InputError, match="'pretrain' has a time of 5, at the end of which it gets 300 s to save"):
        write(short, "configs/llama2-7b.toml")
    enough = write(short + "[restart]\nsignal_seconds = 60\nwithout_progress = 1000000", "configs/llama2-7b.toml")
    assert "USR1@60" in enough["pretrain"] and "--without-progress 1000000\n" in enough["pretrain"]


def test_a_part_of_the_gpus_is_a_part_of_the_memory(write):
    texts = write(CLUSTER.replace('memory = "0"', 'memory = "900G"'), "chain")
    assert "#SBATCH --mem=115200M\n" in texts["suites"] and "#SBATCH --cpus-per-task=12\n" in texts["suites"]


SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
PYTHON = """#!/bin/bash
echo "$*" >> "$LOG"
case $3 in
    after) echo "$DECISION" ;;
    ended) exit "$ENDED" ;;
    configs/*) echo "$SLURM_EXPORT_ENV $BIOMEDGPT_MISTAKE" >> "$LOG" ;;
esac
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$LOG"
[ "$(grep -c "^scontrol $1" "$LOG")" -gt "$REFUSALS" ]
"""


@pytest.fixture
def run_script(tmp_path):
    """Run the text of an sbatch file, with programs that only note how they were called; returns code and notes."""
    programs = {"srun": SRUN, "python": PYTHON, "scontrol": SCONTROL, "squeue": "#!/bin/bash\necho node9\n"}
    programs |= {name: f'#!/bin/bash\necho "{name} $*" >> "$LOG"\n' for name in ("scancel", "sleep")}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(text, decision="done", ended=1, refusals=0, restarts=1):
        log = tmp_path / "log"
        log.write_text("")
        environment = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "LOG": str(log),
            "DECISION": decision,
            "ENDED": str(ended),
            "REFUSALS": str(refusals),
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        (tmp_path / "script").write_text(text)
        done = subprocess.run(
            ["bash", "script"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        return done.returncode, log.read_text() + done.stderr

    return run


@pytest.fixture
def environment(tmp_path):
    """A cluster whose virtual environment is an empty one."""
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "activate").write_text("false # which does not count\ntrue\n")
    return f'[gpu]\ngpus = 1\n[environment]\nvirtual_environment = "{tmp_path}/env"\n'


def test_a_controller_that_is_away_is_asked_again(write, run_script, environment):
    text = write(environment, "configs/llama2-7b.toml")["pretrain"]
    code, notes = run_script(text, "requeue", refusals=2)
    assert code == 0 and notes.count("scontrol requeue 7\nsleep 10\n") == 2 and "ExcNodeList" not in notes, notes
    assert "ALL runs/llama2-7b/.mistake-7-1\n" in notes
    code, notes = run_script(text, "requeue node2")
    assert code == 0 and "scontrol update JobId=7 ExcNodeList=node9,node2\n" in notes and "scancel" not in notes
    # it is queued again, but the node cannot be left out
    code, notes = run_script(text.replace("until scontrol", "until true scontrol"), "requeue node2", refusals=1)
    assert code == 0 and "scancel 7\n" in notes and "does not leave out node2" in notes
    # away for good
    code, notes = run_script(text.replace("+ 600", "+ 0"), "requeue", refusals=100)
    assert code == 1 and notes.count("scontrol requeue") == 1


@pytest.mark.parametrize("settings", ['setup = ["false", "true"]', 'modules = ["cuda"]', 'virtual_environment = "no"'])
def test_an_environment_that_fails_ends_the_job(settings, write, run_script):
    for text in write(f"[environment]\n{settings}\n", "configs/llama2-7b.toml").values():
        code, notes = run_script(text)
        assert code == 1 and "the environment cannot be set up: line" in notes and "-m" not in notes, notes


def test_at_its_time_limit_a_task_of_an_array_is_queued_again_alone(write, run_script):
    """The last task's SLURM_JOB_ID is that of the whole array."""
    text = write("[gpu]\ngpus = 1\n", "chain")["suites"]
    text = text.replace("wait $!", "wait $!; kill -USR1 $$", 1).replace("/opt/biomedgpt/bin/", "")
    named = "SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=1\n"
    code, notes = run_script(text.replace("#!/bin/bash\n", f"#!/bin/bash\nexport {named}"))
    assert code == 0 and "scontrol requeue 7_1\n" in notes and "the time limit is near" in notes, notes
    assert "-m eval models/7b --data benchmarks --suite biogpt --out scores/it's\n" in notes


def test_scratch_may_be_of_a_user_or_a_job(write, run_script):
    scratch = '/s p/"$USER"/${SLURM_JOB_ID}`$(id)$'
    text = write(f"[gpu]\ngpus = 1\n[environment]\nscratch = '{scratch}'\n", "watch")["export"]
    lines = [line for line in text.splitlines() if line.startswith("export T")]
    code, notes = run_script("\n".join(["USER=me", *lines, 'echo "$TMPDIR" "$TRITON_CACHE_DIR" >> "$LOG"']))
    place = '/s p/"me"/7`$(id)$'
    assert (code, notes) == (0, f"{place} {place}/triton-cache\n")


def test_a_watch_ends_with_its_training(write, run_script, environment):
    text = write(environment, "watch")["watch"]
    code, notes = run_script(text, ended=1, refusals=1)
    assert code == 0 and "-m slurm ended runs/llama2-7b\n" in notes, notes
    assert notes.count("scontrol requeue 7\n") == 2 and "StartTime=now+30minutes" in notes
    code, notes = run_script(text, ended=0)
    assert code == 0 and "-m eval watch" in notes and "scontrol" not in notes, notes


@pytest.mark.parametrize(
    "stages, words",
    [
        ('[[stages]]\nname = "a"\nkind = "shards"', "'config' is missing"),
        ('[[stages]]\nname = "a"\nkind = "export"', "needs a stage of kind pretrain or align"),
        ('[[stages]]\nname = "a/b"\nkind = "command"\ncommands = ["true"]', "letters, digits"),
        ('[[stages]]\nname = "a"\nkind = "command"\ncommands = ["true"]\nafter = ["b"]', "no stage before it"),
        ('[[stages]]\nname = "a"\nkind = "pretrain"\nconfig = "chain.toml"', "stage 'a': chain.toml: unknown key"),
        (
            '[[stages]]\nname = "a-parts"\nkind = "command"\ncommands = ["true"]\n'
            '[[stages]]\nname = "a"\nkind = "shards"\nconfig = "chain.toml"\nparts = 2',
            "stage 'a-parts' needs another name",
        ),
        ('[[stages]]\nname = "a"\nkind = "shards"\nconfig = "chain.toml"\nnodes = 2', "one process on one node"),
        ('[[stages]]\nname = "a"\nkind = "command"\ncommands = ["true"]\ntasks = 2', "one process on one node"),
        ('[[stages]]\nname = "a"\nkind = "command"\ncommands = ["HF_TOKEN=abcdef ls"]', "HF_TOKEN=... in 'commands'"),
        (
            '[[stages]]\nname = "a"\nkind = "eval"\narguments = ["--api-key", "sk-ant-abcdefghijklmnopq"]',
            "--api-key ... in 'arguments' looks like a secret",
        ),
        (
            '[[stages]]\nname = "a"\nkind = "eval"\neach = [["--suite", "qa"], ["hf_abcdefghijklmnopqrst"]]',
            "'hf_abc...' in 'each' looks like a secret",
        ),
        ("", "there are no"),
    ],
)
def test_wrong_chains(stages, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "chain.toml").write_text(f'directory = "runs"\n{stages or "stages = []"}\n')
    with pytest.raises(InputError, match=words):
        chains.read(Path("chain.toml"), [], None)


@pytest.mark.parametrize("directory, words", [("~/run", "nothing stands for ~"), ("-run", "take for an option")])
def test_directories_that_a_shell_takes_for_something_else(directory, words, tmp_path):
    (tmp_path / "chain.toml").write_text(
        f'directory = "{directory}"\n[[stages]]\nname = "a"\nkind = "command"\ncommands = ["true"]\n'
    )
    with pytest.raises(InputError, match=words):
        chains.read(tmp_path / "chain.toml", [], None)
    with pytest.raises(InputError, match=words):
        chains.read(REPOSITORY / "configs" / "llama2-7b.toml", [f"--directory={directory}"], None)


def test_secrets_on_the_command_line(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=r"'hf_abc\.\.\.' on the command line looks like a secret"):
        chains.read(Path("configs/llama2-7b.toml"), ["--tracking.name", "hf_abcdefghijklmnopqrstu"], None)
