"""Single things that a cluster does to training jobs: time limits, cancellation, bad nodes, crashes again and again."""

import shutil

import pytest

from align.train import train as align
from job import config as configs
from job.training import CheckpointConfig
from parallel.layout import Layout
from tests.align.conftest import align_inputs  # noqa: F401  (a fixture)
from tests.align.runs import assert_equal_checkpoints as assert_equal_alignments
from tests.align.runs import final
from tests.conftest import REPOSITORY
from tests.faults.jobs import run_job, samples_in_order
from tests.faults.test_align import config_of as align_config_of
from tests.slurm.chains import endings, logs, stages, wait_for, wait_for_step
from tests.training import BATCH, make_config, metrics_rows

pytestmark = pytest.mark.timeout(600)
CLUSTER = """
    [gpu]
    cpus = 1
    time = "30"
    [cpu]
    time = "30"
    [environment]
    interface = "lo"
    [preflight]
    use = {preflight}
    seconds = 180.0
    free_disk_gib = 0.1
    clock_seconds = 30.0
    [restart]
    signal_seconds = 300
    without_progress = 1
"""


def submit(slurm, config, nodes=2, preflight="false", cluster=CLUSTER):
    """Submit a run of one process on each of some nodes; returns its directory and the ids of its jobs, by stage."""
    (slurm.directory / "cluster.toml").write_text(cluster.format(preflight=preflight))
    configs.save(config, slurm.directory / "run.toml")
    code, told = slurm("submit", "run.toml", "--cluster", "cluster.toml", "--nodes", nodes)
    assert code == 0, told
    run = slurm.directory / "run"
    return run, {name: stage["job"] for name, stage in stages(run).items()}


def pretraining(slurm, inputs, steps, layout=None):
    checkpoints = CheckpointConfig(every_steps=0)
    return make_config(slurm.directory / "run", inputs, layout or Layout(), steps=steps, checkpoint=checkpoints)


def test_time_limit_preemption_and_cancellation(slurm, sandbox, inputs):
    """Before its limit a job saves and is queued again, likewise where an urgent job takes its nodes; cancelled, no."""
    low = CLUSTER.replace("[gpu]", '[gpu]\n    partition = "low"')
    run, jobs = submit(slurm, pretraining(slurm, inputs, steps=100_000), nodes=1, cluster=low)
    job = jobs["pretrain"]
    wait_for_step(run, 2)
    node = sandbox.field(job, "NodeList")  # where training has nothing to do but to wait, other tests go first:
    sandbox.inside(node, "renice", "--priority", "19", "--pid", *sandbox.ranks_on(node, "pretrain"))
    minutes = int(sandbox.field(job, "RunTime").split(":")[1]) + 2
    sandbox.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_for(lambda: endings(run), 100, lambda: logs(run))  # Slurm looks at limits twice a minute
    [ending] = endings(run)
    assert "signal SIGUSR1" in ending.reason and ending.exit_code == 0 and ending.checkpoint >= 2
    sandbox.call("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    wait_for_step(run, ending.checkpoint + 2, attempt=2)
    assert [row["attempt"] for row in metrics_rows(run) if row["step"] == ending.checkpoint + 1] == [2]

    urgent = sandbox.call(
        *("sbatch", "--parsable", "--nodes=3", "--exclusive", "--partition=main", "--output=/dev/null", "--wrap=true")
    ).strip()
    assert sandbox.wait(urgent, 90) == "COMPLETED", logs(run)
    preempted = endings(run)[1]
    assert "signal SIGTERM" in preempted.reason and preempted.checkpoint >= ending.checkpoint + 2
    wait_for_step(run, preempted.checkpoint + 2, attempt=3)

    code, told = slurm("status", "run")
    assert code == 0 and "RUNNING, restart 2" in told and "2 restarts:" in told and "left" in told, told
    assert slurm("cancel", "run")[0] == 0
    assert {sandbox.wait(other, 60) for other in jobs.values()} == {"CANCELLED"}
    assert sandbox.field(job, "Restarts") == "2" and len(endings(run)) == 2


def test_stopped_by_hand_and_continued_on_fewer_nodes_and_on_more(slurm, sandbox, inputs):
    """A second job is refused; the file `stop` ends the first; it goes on with half the ranks, and again with all."""
    steps = 100_000
    config = pretraining(slurm, inputs, steps)
    run, jobs = submit(slurm, config)
    wait_for_step(run, 2)
    second = sandbox.call(
        *("env", f"PYTHONPATH={REPOSITORY}", "sbatch", "--parsable", str(run / "slurm" / "pretrain.sbatch"))
    ).strip()
    assert sandbox.wait(second, 90) == "FAILED"
    assert f"(job {jobs['pretrain']})" in (run / "slurm" / f"pretrain-{second}.log").read_text()
    (run / "stop").touch()
    assert sandbox.wait(jobs["pretrain"], 90) == "FAILED", logs(run)
    refused, stopped = endings(run)
    assert (refused.job, refused.start, refused.decision) == (second, 0, "stop") and "in use by" in refused.reason
    assert stopped.decision == "stop" and "file 'stop'" in stopped.reason and 2 <= stopped.checkpoint < steps
    assert sandbox.wait(jobs["export"], 30) == "CANCELLED"

    for nodes in (1, 2):
        shutil.rmtree(run / "model", ignore_errors=True)  # of the shorter run: submit would refuse to overwrite it
        config.train.steps = 6 * nodes + stopped.checkpoint
        _, jobs = submit(slurm, config, nodes=nodes)
        assert {sandbox.wait(job, 120) for job in jobs.values()} == {"COMPLETED"}, logs(run)
    assert samples_in_order(run) == [(step * BATCH, (step + 1) * BATCH - 1) for step in range(config.train.steps)]


def test_a_bad_node_is_named_and_left_out(slurm, sandbox, inputs):
    """The second node cannot write into the run directory: the job goes on with the third."""
    run = slurm.directory / "run"
    run.mkdir()
    sandbox.inside("node2", "mount", "--bind", str(run), str(run))
    sandbox.inside("node2", "mount", "-o", "remount,bind,ro", str(run))
    try:
        run, jobs = submit(slurm, pretraining(slurm, inputs, steps=2), preflight="true")
        assert sandbox.wait(jobs["pretrain"], 240) == "COMPLETED", logs(run)
    finally:
        sandbox.inside("node2", "umount", str(run))
    first, last = endings(run)
    assert first.excluded == ["node2"] and "node2: cannot write into" in first.reason
    assert last.decision == "done" and sandbox.field(jobs["pretrain"], "ExcNodeList") == "node2"
    assert sandbox.field(jobs["pretrain"], "NodeList") == "node[1,3]"
    assert "preflight: 2 ranks on 2 nodes" in logs(run)


def test_a_crash_loop_ends(slurm, sandbox, inputs):
    """Training that dies each time before it has saved anything gives up, and what waits for it is cancelled."""
    limited = CLUSTER.replace("[environment]", '[environment]\n    setup = ["ulimit -t 2"]  # seconds of computing')
    run, jobs = submit(slurm, pretraining(slurm, inputs, steps=4), nodes=1, cluster=limited)
    assert sandbox.wait(jobs["pretrain"], 120) == "FAILED", logs(run)
    assert [ending.decision for ending in endings(run)] == ["requeue", "stop"]
    assert "no newer checkpoint than step 0 in 1 restarts" in endings(run)[1].reason
    assert sandbox.wait(jobs["export"], 30) == "CANCELLED"
    code, told = slurm("status", "run")
    assert code == 0 and "training has not begun" in told and "gave up: no newer checkpoint" in told, told


def test_a_mistake_is_not_tried_again(slurm, sandbox, inputs):
    """Whatever srun reports of the ranks that it ends; the reason is the sentence that the first rank printed."""
    config = pretraining(slurm, inputs, steps=4)
    (slurm.directory / "shards").symlink_to(inputs.shards)
    config.data.sources[0].path = "shards"
    gone = CLUSTER.replace("[environment]", '[environment]\n    setup = ["rm shards"]  # there when it was submitted')
    run, jobs = submit(slurm, config, cluster=gone)
    assert sandbox.wait(jobs["pretrain"], 120) == "FAILED", logs(run)
    [ending] = endings(run)
    assert ending.decision == "stop" and "shards/manifest.json does not" in ending.reason and ending.reason in logs(run)
    assert not list(run.glob(".mistake*"))


def test_alignment_goes_on_after_a_kill_a_hang_and_a_lost_node(slurm, sandbox, align_inputs, tmp_path):  # noqa: F811
    """The same for DeepSpeed: queued again each time, it ends in the bits of a run that nobody disturbed."""

    def config_of(directory):
        config = align_config_of(directory, align_inputs)
        config.train.steps, config.parallel.timeout_seconds = 24, 120
        config.health.hang_factor, config.health.hang_minimum_seconds = 20.0, 8.0
        return config

    codes, output = run_job(2, config_of(tmp_path / "whole"), seconds=240, command=align)
    assert codes == [0, 0], output
    run, jobs = submit(slurm, config_of(slurm.directory / "run"))
    wait_for_step(run, 3)  # there is a checkpoint every second step
    sandbox.inside("node2", "kill", "-KILL", *sandbox.ranks_on("node2", "align"))
    wait_for_step(run, 9, attempt=2)
    sandbox.inside("node2", "kill", "-STOP", *sandbox.ranks_on("node2", "align"))
    wait_for_step(run, 16, attempt=3)
    sandbox.cut("node2")
    try:
        assert sandbox.wait(jobs["align"], 300) == "COMPLETED", logs(run)
    finally:
        sandbox.start_node("node2")
    killed, hung, lost, done = endings(run)
    assert killed.exit_code > 128 and killed.checkpoint >= 2
    assert "no step for" in hung.reason and hung.checkpoint >= 8
    assert list(run.glob("logs/attempt-2/stacks-rank-*.txt"))
    assert "Slurm queued the job again" in lost.reason and lost.checkpoint >= 14
    assert done.decision == "done" and sandbox.field(jobs["align"], "NodeList") == "node[1,3]"
    assert_equal_alignments(final(run), final(tmp_path / "whole"))
    assert samples_in_order(run) == samples_in_order(tmp_path / "whole")


def test_building_goes_on_after_its_time_limit(slurm, sandbox, real_data):
    """The last of two jobs that read, whose id is that of the whole array: the other is left alone."""
    here = slurm.directory
    (here / "cluster.toml").write_text(CLUSTER.format(preflight="false"))
    (here / "build.toml").write_text(f"""
        output = "shards"
        tokenizer = "{real_data}/stories260K/hf"
        [[sources]]
        name = "pmc"
        format = "pmc"
        paths = ["{real_data}/jats_fulltext/*.tar.gz"]
    """)
    (here / "chain.toml").write_text("""
        directory = "chain"
        [[stages]]
        name = "shards"
        kind = "shards"
        config = "build.toml"
        parts = 2
    """)
    code, told = slurm("submit", "chain.toml", "--cluster", "cluster.toml")
    assert code == 0, told
    parts, build = (stages(here / "chain")[name]["job"] for name in ("shards-parts", "shards"))
    log = here / "chain" / "slurm" / f"shards-parts-{parts}-1.log"
    wait_for(lambda: log.exists() and "reading" in log.read_text(), 60, lambda: logs(here / "chain"))
    sandbox.call("scancel", "--batch", "--signal=USR1", f"{parts}_1")  # as Slurm does a minute before the limit
    assert sandbox.wait(build, 180) == "COMPLETED", logs(here / "chain")
    assert [sandbox.field(f"{parts}_{number}", "Restarts") for number in range(2)] == ["0", "1"]
    assert "the time limit is near: the job is queued again" in log.read_text()
    assert (here / "shards" / "manifest.json").exists()
