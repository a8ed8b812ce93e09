"""Workers on Apache Kafka under a nemesis lose nothing and send nothing twice; with a mistake in them they do."""

import json
import os
import random
import re
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from flowkit.options import Guarantee
from tests.integration.processes import crew_in
from tests.kafka.jars import need_kafka
from tests.kafka.real import Kafka
from tests.kafka.sabotage import STEPS
from tests.kafka.torture import PATIENCE, Variant, drain, torture
from tests.kafka.torture_deeds import DEEDS, Nemesis
from tests.kafka.torture_events import Generator, make_topics
from tests.kafka.torture_model import Book, Outside, differences
from tests.kafka.torture_state import changelog_differences, state_differences


@pytest.fixture(autouse=True)
def kafka_can_run() -> None:
    need_kafka()


@pytest.mark.timeout(420)
def test_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    deeds = [deed for deed in DEEDS if deed != "pause_heir"]  # which takes as long as three others
    done = torture(tmp_path, seconds=45, seed=8, deeds=deeds)
    assert done["events"] > 2_000
    assert len(done["deeds"]) >= 6, done


class Trial(NamedTuple):
    """By which deeds a mistake comes to light, the misfortunes that it takes, and the guarantee that it breaks."""

    deeds: list[str]
    misfortunes: Sequence[str] = ()
    guarantee: Guarantee = "exactly once"


LOOSE: Guarantee = "at least once"
SABOTAGE = {
    "no_fence": Trial(["pause"], ["slow_commits"]),
    "failed_sends_ignored": Trial(["term"], ["sends_fail"]),
    "frame_before_outputs": Trial(["kill_all"]),
    "positions_early": Trial(["kill_all"]),
    "any_frame_counts": Trial(["kill_all"], ["slow_commits"]),
    "last_frame_skipped": Trial(["kill_all"]),
    "files_cut_late": Trial(["pause"], ["slow_deliveries"]),
    "outputs_after_frame": Trial(["kill_all"], [], LOOSE),
    "claims_unheeded": Trial(["pause"], ["slow_commits"], LOOSE),
}
NONE = {
    "none": Trial(["term", "kill_all"], ["sends_fail", "slow_commits"]),
    "none late": Trial(["pause", "pause_heir"], ["slow_deliveries", "slow_opens"]),
    "none loose": Trial(["term", "kill_all"], ["sends_fail", "slow_commits"], LOOSE),
}
"""Misfortunes alone: nothing is to be found."""

TRIED = SABOTAGE | NONE
if not os.environ.get("FLOWKIT_TORTURE_ALL"):
    TRIED = {name: TRIED[name] for name in ("positions_early", "last_frame_skipped", "none")}
"""All of them take some minutes: at each change those that are found out by one death; `.ci/long torture` tries all."""


@pytest.mark.timeout(1200)
def test_it_can_fail(tmp_path: Path) -> None:
    """With each mistake it does; with a misfortune alone it does not. Three runs at a time share a broker."""
    differs = re.compile(r"events lost|more than once|not the model's|do(es)? not follow")

    def found_in(mistake: str, trial: Trial) -> str:
        """What it says. Some mistakes take a race to show, which is not won each time."""
        said = ""
        for seed in range(5, 13) if mistake in SABOTAGE else (5,):
            said = run(f"{mistake}-{seed}", mistake, trial, seed)
            if differs.search(said):
                break
        return said

    def run(name: str, mistake: str, trial: Trial, seed: int) -> str:
        """What it says; '' if it finds nothing."""
        name = name.replace("_", "-").replace(" ", "-")
        directory = tmp_path / name
        directory.mkdir()
        chosen = [*([mistake] if mistake in SABOTAGE else []), *trial.misfortunes]
        try:
            torture(
                directory,
                seconds=16,
                seed=seed,
                variant=Variant(workers=2, guarantee=trial.guarantee),
                deeds=trial.deeds,
                sabotage=chosen,
                patience=8 if mistake in SABOTAGE else PATIENCE,
                kafka=kafka,
                app=name,
                say=lambda text: print(f"{name}: {text}"),
            )
        except AssertionError as error:
            return str(error)
        return ""

    with Kafka(tmp_path / "kafka") as kafka, ThreadPoolExecutor(3) as pool:
        runs = {mistake: pool.submit(found_in, mistake, trial) for mistake, trial in TRIED.items()}
        found = {mistake: each.result() for mistake, each in runs.items()}
    assert {name: found.pop(name) for name in NONE if name in TRIED} == {name: "" for name in NONE if name in TRIED}
    assert [mistake for mistake, said in found.items() if "'users': 0" in said] == [], "they were not at work yet"
    assert {mistake: said[:300] for mistake, said in found.items() if not differs.search(said)} == {}


@pytest.mark.timeout(420)
def test_a_worker_may_die_at_every_step_of_a_commit(tmp_path: Path) -> None:
    """One dies at a step, of an early commit or of a later one; the other takes over, then dies at the next step."""
    book = Book(11)
    steps = [(step, times) for step in STEPS for times in (7, 30)]
    random.Random(11).shuffle(steps)
    with Kafka(tmp_path / "kafka") as kafka, crew_in(tmp_path) as crew:
        make_topics(kafka.bootstrap, "torture")
        outside = Outside(kafka.bootstrap, "torture")
        generator = Generator(kafka.bootstrap, "torture-events", book)
        nemesis = Nemesis(crew, kafka, random.Random(11), app="torture", workers=0, sabotage=["dies"])
        ada, bob = nemesis.add(2)
        try:
            generator.start()
            for n, (step, times) in enumerate(steps):
                slot = (ada, bob)[n % 2]
                nemesis.start(slot, {"TORTURE_DIE": f"{step}:{times}"})
                code = slot.process.wait(90)
                assert code == -signal.SIGKILL, f"{step}:{times}: ended with {code}\n{slot.process.said()[-3000:]}"
                assert f"dies at {step}" in slot.process.said()
            nemesis.sabotage = ""
            nemesis.start(ada)
            generator.stop()
            drain(book, outside, nemesis, print, 60)
            nemesis.stop(ada)
            for path in sorted(tmp_path.glob("ledger-*.jsonl")):
                outside.rows["ledger"] += [json.loads(line) for line in path.read_text().splitlines()]
            found, commits = changelog_differences(kafka.bootstrap, "torture")
            found += differences(book, outside.rows) + nemesis.complaints
            found += state_differences(kafka.bootstrap, "torture", book, [ada.state, bob.state])
            assert not found, "\n".join(found)
            assert commits > len(steps) * 7
        finally:
            generator.abandon()
            nemesis.close()
            outside.close()
