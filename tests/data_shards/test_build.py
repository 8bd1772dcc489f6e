"""The build, from real articles of every format to shards that stock webdataset opens."""

import gzip
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tomli_w
import webdataset

from data_shards import build, stats, tasks, tokens
from data_shards.config import BuildConfig
from job import config as job_config
from job.errors import InputError
from job.progress import ByteProgress
from tests.data_shards.real_records import PUBMED_2021, pubmed_file, pubmed_records

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(real_data, tmp_path_factory):
    """A small corpus of real articles in every native format."""
    folder = tmp_path_factory.mktemp("inputs")
    records = list(pubmed_records(real_data / PUBMED_2021).values())
    pubmed_file(folder / "pubmed21n0001.xml.gz", records[:150])
    pubmed_file(folder / "pubmed21n0002.xml.gz", records[150:300])
    lines = gzip.decompress(
        (real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz").read_bytes()
    ).split(b"\n")
    (folder / "abstracts.jsonl").write_bytes(b"\n".join(lines[:400]) + b"\n")
    return folder


def settings(real_data, inputs, output, **changes):
    inputs = inputs or Path()
    s2orc = real_data / "s2orc"
    sources = [
        {"name": "pmc", "format": "pmc", "paths": [str(real_data / "jats_fulltext" / "doc2json.open.tar.gz")]},
        {
            "name": "s2orc",
            "format": "s2orc",
            "paths": [str(s2orc / "20*.json"), str(s2orc / "s2orc_v2_bulk_257292514.jsonl")],
            "metadata": [str(s2orc / "metadata_sample.v20200705.jsonl.gz")],
        },
        {"name": "pubmed", "format": "pubmed", "paths": [str(inputs / "pubmed*.xml.gz")]},
        {"name": "abstracts", "format": "jsonl", "paths": [str(inputs / "abstracts.jsonl")]},
    ]
    return {
        "tokenizer": str(real_data / "llama_tokenizer" / "tokenizer.model"),
        "output": str(output),
        "workers": 1,
        "sources": sources,
        "sharding": {"validation_fraction": 0.05, "block_tokens": 10_000, "shard_tokens": 40_000},
    } | changes


def run(config, *overrides):
    """Parse as the command does, and build in this process; returns funnels by source name."""
    path = Path(config["output"]).parent / f"{Path(config['output']).name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(config))
    parsed = job_config.parse(BuildConfig, [str(path), *overrides], "build", "")
    return {funnel["name"]: funnel for funnel in build.build(parsed)}


def checksums(output):
    """Of everything that counts; not of the manifest's paths."""
    files = [path for split in ("train", "validation") for path in sorted((output / split).glob("*"))]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def built(real_data, inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "shards"
    return output, run(settings(real_data, inputs, output))


def test_funnel_accounts_for_every_record(built):
    output, funnels = built
    assert funnels["pmc"]["read"] == funnels["pmc"]["kept"] == 3
    assert funnels["s2orc"]["read"] == 7 and funnels["s2orc"]["dropped"] == {"no_pubmed_or_pmc_id": 5}
    assert funnels["pubmed"]["read"] == 300 and funnels["abstracts"]["read"] == 400
    for funnel in funnels.values():
        gone = sum(funnel["rejected"].values()) + sum(funnel["dropped"].values())
        assert funnel["read"] == gone + funnel["kept"] and funnel["kept"] == sum(funnel["documents"].values())
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["stage"] == "data_shards build" and manifest["dtype"] == "uint16"
    assert manifest["sources"] == list(funnels.values())
    for split in ("train", "validation"):
        for info in manifest["splits"][split]:
            tar = output / split / info["name"]
            assert hashlib.sha256(tar.read_bytes()).hexdigest() == info["sha256"]
    names = {Path(entry["path"]).name for entry in manifest["inputs"]}
    assert names >= {"pubmed21n0001.xml.gz", "abstracts.jsonl", "metadata_sample.v20200705.jsonl.gz"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["inputs"])


def test_stock_webdataset_reads_the_articles_back(built, real_data):
    output, funnels = built
    tokenizer = tokens.load(real_data / "llama_tokenizer" / "tokenizer.model")
    seen = {}
    for split in ("train", "validation"):
        for tar in sorted((output / split).glob("*.tar")):
            for sample in webdataset.WebDataset(str(tar), shardshuffle=False).decode():
                records = [json.loads(line) for line in sample["documents.jsonl"].decode().split("\n")[:-1]]
                ends = np.cumsum(sample["lengths.npy"])
                documents = np.split(sample["tokens.npy"], ends[:-1])
                assert len(documents) == len(records) and ends[-1] == len(sample["tokens.npy"])
                for ids, record in zip(documents, records, strict=True):
                    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
                    assert record["id"] not in seen
                    seen[record["id"]] = (split, ids, record)
    assert len(seen) == sum(funnel["kept"] for funnel in funnels.values())
    _, ids, record = seen["pmid:28424663"]
    text = tokenizer.decode(ids.tolist())
    assert "Apical periodontitis is an inflammatory reaction" in text and record["title"].startswith("Antimicrobial")
    assert record["source_file"] == "20190928_10002293.json" and record["pmcid"] == "PMC5371592"
    assert "Siqueira" not in text
    assert 0.01 < np.mean([split == "validation" for split, *_ in seen.values()]) < 0.12


def test_worker_count_does_not_change_a_byte(built, real_data, inputs, tmp_path):
    output, _ = built
    run(settings(real_data, inputs, tmp_path / "parallel"), "--workers", "3")
    assert checksums(tmp_path / "parallel") == checksums(output) and len(checksums(output)) >= 10


def test_parts_read_at_once_leave_nothing_to_read(built, real_data, inputs, tmp_path, monkeypatch):
    """As the jobs of an array do: together they read everything once, whatever comes first."""
    config = settings(real_data, inputs, tmp_path / "shards")
    (tmp_path / "build.toml").write_text(tomli_w.dumps(config))
    command = [sys.executable, "-m", "data_shards", "build", str(tmp_path / "build.toml"), "--part"]
    jobs = [subprocess.Popen([*command, f"{number}/3"], cwd=REPOSITORY) for number in range(3)]
    assert [job.wait(120) for job in jobs] == [0, 0, 0]
    monkeypatch.setattr(build.extract, "extract", None)
    assert run(config) == built[1]
    assert checksums(tmp_path / "shards") == checksums(built[0])


def test_nothing_is_done_twice(built, real_data, inputs, monkeypatch):
    output, funnels = built
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")}
    monkeypatch.setattr(build.extract, "extract", None)  # a call would fail
    monkeypatch.setattr(build.pack, "pack", None)
    assert run(settings(real_data, inputs, output)) == funnels
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")} == before


def test_killed_and_restarted_ends_in_the_same_bytes(built, real_data, inputs, tmp_path):
    """SIGKILL at random moments, several times over; no worker outlives the build."""
    config = settings(real_data, inputs, tmp_path / "killed")
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(config))
    command = [sys.executable, "-m", "data_shards", "build", str(path), "--workers", "2"]
    chance = random.Random(7)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            # From the first finished phase on, so that the kills fall into the work and not into the imports.
            process.stderr.readline()
            time.sleep(chance.uniform(0.1, 1.5))
            workers = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            workers = []
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stderr.close()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert kills >= 2 and checksums(tmp_path / "killed") == checksums(built[0])
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_changes_redo_only_what_they_touch(real_data, inputs, tmp_path):
    output = tmp_path / "shards"
    local = tmp_path / "inputs"
    local.mkdir()
    for path in inputs.iterdir():
        (local / path.name).write_bytes(path.read_bytes())
    first = run(settings(real_data, local, output))
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*.documents.zst")}
    assert len(written) == 6
    content = gzip.decompress((local / "pubmed21n0002.xml.gz").read_bytes())
    records = content[content.index(b"<PubmedArticle>") : content.rindex(b"</PubmedArticle>")]
    pubmed_file(local / "pubmed21n0002.xml.gz", [records + b"</PubmedArticle>"], deleted=[("25897341", 1)])
    second = run(settings(real_data, local, output))
    changed = {path.name for path, stamp in written.items() if path.stat().st_mtime_ns != stamp}
    assert len(changed) == 1 and changed.pop().startswith("pubmed21n0002")
    assert second["pubmed"]["dropped"]["deleted"] == 1
    assert second["pubmed"]["kept"] == first["pubmed"]["kept"] - 1
    # A setting of the second pass leaves the first alone, and shards that it no longer makes disappear.
    names = set(checksums(output))
    run(settings(real_data, local, output), "--sharding.shard_tokens", "1e6")
    assert set(checksums(output)) < names
    fresh = tmp_path / "fresh"
    run(settings(real_data, local, fresh), "--sharding.shard_tokens", "1e6")
    assert checksums(output) == checksums(fresh)
    # A setting of the first pass redoes it.
    third = run(settings(real_data, local, output), "--selection.minimum_characters", "1500")
    assert third["pubmed"]["dropped"]["too_short"] > second["pubmed"]["dropped"].get("too_short", 0) + 50


def test_damaged_outputs_are_redone(built, real_data, inputs, tmp_path):
    output = tmp_path / "shards"
    config = settings(real_data, inputs, output)
    run(config)
    victim = sorted((output / "train").glob("*.tar"))[1]
    victim.write_bytes(victim.read_bytes()[:1000])
    sorted((output / "intermediate" / "pubmed").glob("*.documents.zst"))[0].unlink()
    run(config)
    assert checksums(output) == checksums(built[0])


def test_update_files_and_retractions_reach_other_sources(real_data, tmp_path):
    records = pubmed_records(real_data / PUBMED_2021)
    pubmed_file(tmp_path / "pubmed21n0001.xml", [records["29225084"], records["25897341"]])
    revised = records["29225084"].replace(b"<ArticleTitle>", b"<ArticleTitle>Revised: ", 1)
    pubmed_file(tmp_path / "pubmed21n0002.xml", [revised, records["27602157"]], deleted=[("25897341", 1)])
    copy = {"doi": "10.7150/jca.15081", "title": "A copy elsewhere", "text": "An unsuspecting copy of it. " * 40}
    retracted_doi = records["27602157"].split(b'IdType="doi">')[1].split(b"<")[0].decode()
    (tmp_path / "copies.jsonl").write_text(json.dumps(copy | {"doi": retracted_doi}) + "\n")
    config = {
        "tokenizer": str(real_data / "llama_tokenizer" / "tokenizer.model"),
        "output": str(tmp_path / "shards"),
        "workers": 1,
        "sources": [
            {"name": "copies", "format": "jsonl", "paths": [str(tmp_path / "copies.jsonl")]},
            {"name": "pubmed", "format": "pubmed", "paths": [str(tmp_path / "pubmed*.xml")]},
        ],
        "sharding": {"validation_fraction": 0.0},
    }
    funnels = run(config)
    assert funnels["pubmed"]["dropped"] == {"superseded": 1, "deleted": 1, "retracted": 1}
    assert funnels["copies"]["dropped"] == {"retracted": 1} and funnels["pubmed"]["kept"] == 1
    with tarfile.open(tmp_path / "shards" / "train" / "pubmed-000000.tar") as tar:
        [line] = tar.extractfile("000000.documents.jsonl").read().decode().splitlines()
    record = json.loads(line)
    assert record["title"].startswith("Revised: ") and record["source_file"] == "pubmed21n0002.xml"
    assert run(config, "--selection.include_retracted", "true")["pubmed"]["kept"] == 2


def test_best_copy_wins_in_shards(real_data, tmp_path):
    """A real full text whose PubMed record and plain copy are there too: one document, from PMC."""
    with tarfile.open(real_data / "jats_fulltext" / "doc2json.open.tar.gz") as archive:
        data = archive.extractfile(next(m for m in archive if m.name.endswith("PMC7417471.nxml"))).read()
    (tmp_path / "PMC7417471.nxml").write_bytes(data)
    pmid = data.split(b'pub-id-type="pmid">')[1].split(b"<")[0].decode()
    record = pubmed_records(real_data / PUBMED_2021)["29225084"].replace(b"29225084", pmid.encode())
    pubmed_file(tmp_path / "pubmed.xml.gz", [record])
    (tmp_path / "plain.jsonl").write_text(json.dumps({"pmc": "PMC7417471", "text": "A copy of the text. " * 30}) + "\n")
    sources = [
        {"name": kind, "format": kind, "paths": [str(tmp_path / name)]}
        for kind, name in (("jsonl", "plain.jsonl"), ("pubmed", "pubmed.xml.gz"), ("pmc", "PMC7417471.nxml"))
    ]
    config = {
        "tokenizer": str(real_data / "llama_tokenizer" / "tokenizer.model"),
        "output": str(tmp_path / "shards"),
        "workers": 1,
        "sources": sources,
    }
    funnels = run(config)
    assert {name: funnel["kept"] for name, funnel in funnels.items()} == {"jsonl": 0, "pubmed": 0, "pmc": 1}
    assert funnels["jsonl"]["dropped"] == funnels["pubmed"]["dropped"] == {"duplicate_id": 1}
    only_by = run(config, "--selection.licences", '["cc0"]')
    assert only_by["pmc"]["dropped"] == {"licence": 1} and only_by["pubmed"]["dropped"] == {"licence": 1}


def test_bad_records_are_listed_and_good_ones_kept(real_data, tmp_path):
    lines = gzip.decompress(
        (real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz").read_bytes()
    ).split(b"\n")[:20]
    bad = [b'{"title": "cut', b'{"text": "\xe9t\xe9"}', b'{"id": "empty", "title": "Only a title"}', lines[0]]
    (tmp_path / "articles.jsonl").write_bytes(b"\n".join([*lines[:10], *bad, *lines[10:]]) + b"\n")
    config = {
        "tokenizer": str(real_data / "llama_tokenizer" / "tokenizer.model"),
        "output": str(tmp_path / "shards"),
        "workers": 1,
        "sources": [{"name": "plain", "format": "jsonl", "paths": [str(tmp_path)]}],
    }
    funnel = run(config)["plain"]
    assert funnel["read"] == 24 and funnel["kept"] == 20
    assert funnel["rejected"] == {"malformed_json": 1, "wrong_encoding": 1}
    assert funnel["dropped"] == {"no_text": 1, "duplicate_id": 1}
    rejects = [json.loads(line) for line in (tmp_path / "shards" / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["source_position"], reject["reason"]) for reject in rejects] == [
        ("line 11", "malformed_json"),
        ("line 12", "wrong_encoding"),
        ("line 13", "empty_article"),
    ]
    assert all(reject["source"] == "plain" and reject["source_file"] == "articles.jsonl" for reject in rejects)


def test_truncated_input_stops_with_its_name_or_goes_on_as_told(real_data, inputs, tmp_path):
    whole = (inputs / "pubmed21n0001.xml.gz").read_bytes()
    (tmp_path / "pubmed21n0001.xml.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pubmed21n0002.xml.gz").write_bytes((inputs / "pubmed21n0002.xml.gz").read_bytes())
    config = {
        "tokenizer": str(real_data / "llama_tokenizer" / "tokenizer.model"),
        "output": str(tmp_path / "shards"),
        "workers": 2,
        "sources": [{"name": "pubmed", "format": "pubmed", "paths": [str(tmp_path / "*.xml.gz")]}],
    }
    with pytest.raises(InputError, match=r"pubmed21n0001\.xml\.gz is damaged: .* download it again"):
        run(config)
    assert not (tmp_path / "shards" / "manifest.json").exists()
    funnel = run(config, "--damaged_files", "keep")["pubmed"]
    assert 200 < funnel["read"] < 280 and "pubmed21n0001.xml.gz" in funnel["damaged_files"][0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokeniser": "x"}, "unknown key 'tokeniser'; did you mean 'tokenizer'?"),
        ({"tokenizer": "missing/tokenizer.model"}, "missing/tokenizer.model"),
        ({"sources": []}, "no [[sources]]"),
        (
            {"sources": [{"name": "a", "format": "pubmed", "paths": ["nothing/*.xml"]}]},
            "no file matches 'nothing/*.xml'",
        ),
        ({"sources": [{"name": "a", "format": "pdf", "paths": ["x"]}]}, "pdf"),
        ({"selection": {"licences": ["mit"]}}, "unknown class 'mit'"),
        ({"sharding": {"validation_fraction": 1.5}}, "validation_fraction is 1.5"),
    ],
)
def test_mistakes_are_one_sentence(real_data, inputs, tmp_path, change, sentence):
    config = settings(real_data, inputs, tmp_path / "shards") | change
    with pytest.raises(InputError) as caught:
        run(config)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_foreign_directories_are_left_alone(real_data, inputs, tmp_path):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / "mine-000000.tar").write_bytes(b"precious")
    with pytest.raises(InputError, match="is not the work of a build"):
        run(settings(real_data, inputs, tmp_path / "shards"))
    assert (tmp_path / "shards" / "train" / "mine-000000.tar").read_bytes() == b"precious"


def test_one_build_at_a_time(real_data, inputs, tmp_path):
    output = tmp_path / "shards"
    with build._lock(output), pytest.raises(InputError, match="another build is running"):
        run(settings(real_data, inputs, output))


def test_command_line(real_data, tmp_path):
    """Exit status and sentence of a user's mistake; help without torch."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "data_shards", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    missing = command("build", "none.toml")
    assert missing.returncode == 2 and missing.stderr == "error: config file none.toml does not exist\n"
    assert "--sharding.validation_fraction" in command("build", "--help").stdout
    assert command("stats", str(tmp_path)).returncode == 2


def test_full_disk_is_one_sentence_and_the_build_goes_on_afterwards(built, real_data, inputs, tmp_path):
    """A limit on file size fails writes as a full disk does, in the workers too."""
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(settings(real_data, inputs, tmp_path / "shards")))
    command = [sys.executable, "-m", "data_shards", "build", str(path), "--workers", "2"]
    limited = ["bash", "-c", 'ulimit -f 60; exec "$@"', "bash", *command]  # blocks of 1,024 bytes
    stopped = subprocess.run(limited, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    [sentence] = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr
    assert sentence.startswith("error: cannot write ") and "free space or choose another directory" in sentence
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0 and checksums(tmp_path / "shards") == checksums(built[0])


def test_ctrl_c_is_one_word(real_data, inputs, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(settings(real_data, inputs, tmp_path / "shards")))
    process = subprocess.Popen(
        [sys.executable, "-m", "data_shards", "build", str(path), "--workers", "2"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    while "reading" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors.split("\n")[-2] == "interrupted" and "Traceback" not in errors


def test_stats(built, capsys):
    output, funnels = built
    assert stats.main([str(output)]) == 0
    printed = capsys.readouterr().out
    assert "no PubMed or PMC id" in printed and f"{funnels['pubmed']['tokens']['train']:,}" in printed
    picture = (output / "funnel.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert int.from_bytes(io.BytesIO(picture[16:20]).read(), "big") > 600  # pixels wide


class CountingProgress(ByteProgress):
    """What a build tells its progress display, by phase."""

    phases: dict[str, tuple[int, list[int]]]

    def __init__(self):
        super().__init__()
        CountingProgress.phases = {}

    def start(self, name, total):
        super().start(name, total)
        self._counts = []
        self.phases[name] = (total, self._counts)

    def advance(self, count, note="", skipped=False):
        super().advance(count, note, skipped)
        self._counts.append(count)


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_moves_within_a_large_file(workers, real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ByteProgress", CountingProgress)
    monkeypatch.setattr(tasks, "_SECONDS_BETWEEN_PARTS", 0.02)
    archives = [real_data / "jats_fulltext" / f"{name}.open.tar.gz" for name in ("plos", "craft")]
    sources = [{"name": "pmc", "format": "pmc", "paths": [str(path) for path in archives]}]
    run(settings(real_data, None, tmp_path / "out", sources=sources, workers=workers))
    size = sum(path.stat().st_size for path in archives)
    total, counts = CountingProgress.phases["reading"]
    assert total == size and sum(counts) == size and min(counts) >= 0
    assert len(counts) > 8 and max(counts) < size / 3  # two tasks, each told of in many parts
    total, counts = CountingProgress.phases["tokenising"]
    assert sum(counts) == total and min(counts) >= 0
    run(settings(real_data, None, tmp_path / "out", sources=sources, workers=workers))
    assert sum(CountingProgress.phases["reading"][1]) == size and len(CountingProgress.phases["reading"][1]) == 2
