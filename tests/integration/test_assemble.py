"""Studies assembled in a real database: arrival, verdict, late slices, and clocks that jump."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from db import associations, audit, instances, jobs, performed_steps, results, studies
from db.associations import ABORTED, RELEASED
from db.dicom_json import data_set
from db.engine import Database
from db.instances import NewInstance
from db.schema import now
from db.states import JobState, StudyState
from db.studies import Study
from inference.result import Completeness, Outcome, SeriesChoice, StudyResult
from inference.series import Criteria, InstanceFacts, facts
from node import assemble
from node.assemble import Memory, Moment
from node.config import AssembleSection, PeerSection, Settings

CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.34"
STUDY = "1.2"
LEASE = dt.timedelta(minutes=1)
WAITS = AssembleSection(settle_time=2, quiet_time=30, limit=600)
SAGITTAL = ((0.0, 1.0, 0.0, 0.0, 0.0, -1.0),)


def stored(json: dict[str, Any], *, over: str, study: str, uid: str) -> NewInstance:
    return NewInstance(
        sop_instance_uid=uid,
        sop_class_uid=json.get("sop_class_uid", CT),
        series_uid=json.get("series_uid", "1.2.3"),
        study_uid=study,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=f"{uid}.dcm",
        size=1,
        digest="d",
        association_id=over,
        calling_ae="CT1",
        facts=json,
        header={},
    )


class Site:
    """A node's database on whose time the test decides: time passes when `wait` says so, and every wait ends in a tick.

    Stored times are the real ones. As in a running node, a tick has looked shortly before anything arrives.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.memory = Memory()
        self.passed = 0.0
        self.clock_set_by = dt.timedelta(0)
        self._numbers = itertools.count()

    def wait(self, seconds: float = 0.0) -> int:
        self.passed += seconds
        wall = now() + dt.timedelta(seconds=self.passed) + self.clock_set_by
        at = Moment(wall=wall, steady=1000.0 + self.passed)
        return assemble.tick(self.database, self.settings, model="triage", memory=self.memory, at=at)

    def associate(self, sender: str = "CT1") -> str:
        name = f"a{next(self._numbers)}"
        with self.database.write() as tx:
            associations.opened(
                tx, association_id=name, receiver="r", calling_ae=sender, called_ae="HEMONODE", address="127.0.0.1"
            )
        return name

    def store(self, arriving: Iterable[InstanceFacts], *, over: str, study: str = STUDY) -> None:
        self.wait()
        with self.database.write() as tx:
            for one in arriving:
                instances.add(tx, stored(one.to_json(), over=over, study=study, uid=one.sop_instance_uid))

    def end(self, association: str, outcome: str = RELEASED) -> None:
        with self.database.write() as tx:
            associations.ended(tx, association_id=association, outcome=outcome)

    def send(self, arriving: Iterable[InstanceFacts], *, sender: str = "CT1", study: str = STUDY) -> None:
        over = self.associate(sender)
        self.store(arriving, over=over, study=study)
        self.end(over)

    def study(self, uid: str = STUDY) -> Study:
        with self.database.read() as tx:
            found = studies.find(tx, uid)
        assert found is not None
        return found

    def verdict(self, uid: str = STUDY) -> Completeness:
        found = self.study(uid)
        assert found.state is not StudyState.RECEIVING
        assert found.completeness is not None
        return Completeness.from_json(found.completeness)

    def told(self, uid: str = STUDY) -> list[str]:
        with self.database.read() as tx:
            return [event.event for event in audit.timeline(tx, uid)]

    def claim(self) -> jobs.Job:
        with self.database.write() as tx:
            job = jobs.claim(tx, owner="w", lease=LEASE)
        assert job is not None
        return job

    def record(self, job: jobs.Job, *, read: Sequence[str] = ("1.2.1",), outcome: Outcome = Outcome.NEGATIVE) -> None:
        result = StudyResult(
            study_uid=job.study_uid,
            revision=job.revision,
            outcome=outcome,
            reason="as the test wants it",
            completeness=Completeness(complete=True, reason="whole"),
            series=tuple(SeriesChoice(series_uid=uid, chosen=True, rank=1, code="chosen", reason="r") for uid in read),
        )
        with self.database.write() as tx:
            results.record(tx, job, outcome=outcome, payload=result.to_json(), follow=[])

    def read(self, **how: Any) -> None:
        self.record(self.claim(), **how)


@pytest.fixture
def site(either_database: Database) -> Site:
    return Site(either_database, Settings(assemble=WAITS))


@contextmanager
def asked_of(database: Database) -> Iterator[list[str]]:
    """The statements that the database is asked while the block runs."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        asked.append(statement)

    sa.event.listen(database.engine, "before_cursor_execute", note)
    yield asked
    sa.event.remove(database.engine, "before_cursor_execute", note)


def series(
    uid: str = "1.2.1", count: int = 28, *, step: float = 5.0, first: int = 1, **changes: Any
) -> list[InstanceFacts]:
    """Axial slices of a head, `step` mm apart and thick."""
    plain = InstanceFacts(
        study_uid=STUDY,
        series_uid=uid,
        sop_class_uid=CT,
        modality="CT",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        series_number=int(uid.split(".")[-1]),
        body_part="HEAD",
        kernel="H30s",
        frame_of_reference_uid="9",
        rows=512,
        columns=512,
        pixel_spacing=(0.45, 0.45),
        thickness=step,
        orientations=((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),),
    )
    return [
        dataclasses.replace(
            plain,
            sop_instance_uid=f"{uid}.{number}",
            instance_number=number,
            positions=((0.0, 0.0, step * number),),
            **changes,
        )
        for number in range(first, first + count)
    ]


def localizer() -> list[InstanceFacts]:
    return series("1.2.9", 2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), orientations=SAGITTAL)


def report(number: int = 1) -> InstanceFacts:
    """A Structured Report as it leaves this node, and as a PACS sends it back."""
    return InstanceFacts(
        study_uid=STUDY, series_uid="1.2.7", sop_instance_uid=f"1.2.7.{number}", sop_class_uid=SR, modality="SR"
    )


# The verdict


def test_a_whole_series_of_a_released_association_is_complete_when_it_has_settled(site: Site) -> None:
    site.send(series())
    assert site.wait(1.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict() == Completeness(
        complete=True,
        reason="series 1: 28 slices over 140 mm, none missing between them; CT1 released its association; "
        "nothing more for 2 s",
        evidence=(
            "geometry: series 1: 28 slices over 140 mm, none missing between them",
            "association: CT1 released its association",
            "settled: nothing more for 2 s",
        ),
    )
    assert site.claim().study_uid == STUDY


def test_a_real_head_ct_is_whole_in_any_order_of_arrival(site: Site, head_ct: Path) -> None:
    found = [facts(pydicom.dcmread(path, stop_before_pixels=True)) for path in sorted(head_ct.glob("*.dcm"))]
    random.Random(5).shuffle(found)
    site.send(found)
    assert site.wait(2) == 1
    assert site.verdict().complete
    assert site.verdict().missing == ()


def test_an_open_association_waits_for_the_quiet_time_and_its_release_ends_the_wait(site: Site) -> None:
    over = site.associate()
    site.store(series(), over=over)
    assert [site.wait(5), site.wait(5)] == [0, 0]
    site.end(over)
    assert site.wait() == 1
    assert site.verdict().complete


def test_an_association_that_stays_open_is_not_waited_for_longer_than_the_quiet_time(site: Site) -> None:
    site.store(series(), over=site.associate())
    assert site.wait(29.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().complete
    assert "association: CT1 may still be sending" in site.verdict().evidence


def test_an_aborted_association_waits_for_the_quiet_time_and_leaves_a_doubt(site: Site) -> None:
    over = site.associate()
    site.store(series(), over=over)
    site.end(over, ABORTED)
    assert site.wait(29.9) == 0
    assert site.wait(0.1) == 1
    assert not site.verdict().complete
    assert site.verdict().missing == ("what CT1 had not sent when its association was aborted",)


def test_what_is_sent_again_after_an_abort_makes_it_good(site: Site) -> None:
    over = site.associate()
    site.store(series(count=20), over=over)
    site.end(over, ABORTED)
    site.send(series(count=8, first=21))
    assert site.wait(29.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().complete


def test_of_two_parallel_associations_the_last_one_counts(site: Site) -> None:
    first, second = site.associate(), site.associate()
    site.store(series()[::2], over=first)
    site.store(series()[1::2], over=second)
    site.end(first)
    assert site.wait(5) == 0
    site.end(second)
    assert site.wait() == 1
    assert site.verdict().complete


def test_one_association_for_each_image_waits_for_the_quiet_time(site: Site) -> None:
    for one in series():
        site.send([one])
        assert site.wait(2.5) == 0  # the slices so far always look whole
    assert site.wait(27.4) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().complete


def test_a_peer_may_have_a_quiet_time_of_its_own(either_database: Database) -> None:
    slow = PeerSection(ae_title="SLOWCT", addresses=("127.0.0.1",), quiet_time=90)
    site = Site(either_database, Settings(assemble=WAITS, peers=(slow,)))
    site.store(series(), over=site.associate("SLOWCT"))
    assert site.wait(89.9) == 0
    assert site.wait(0.1) == 1


def test_a_series_with_a_gap_waits_for_the_quiet_time_and_names_the_gap(site: Site) -> None:
    whole = series()
    site.send([*whole[:10], *whole[11:]])
    assert site.wait(29.9) == 0
    assert site.wait(0.1) == 1
    assert not site.verdict().complete
    assert site.verdict().missing == ("1 slice missing at 55.0 mm, between instance 10 and instance 12",)


def test_the_missing_slice_ends_the_wait(site: Site) -> None:
    whole = series()
    site.send([*whole[:10], *whole[11:]])
    assert site.wait(10) == 0
    site.send(whole[10:11])
    assert site.wait(2) == 1
    assert site.verdict().complete


def test_nothing_waits_longer_than_the_limit_which_names_the_missing_positions(site: Site) -> None:
    over = site.associate()
    trickle = [slice_ for slice_ in series(count=60, step=2.5) if slice_.instance_number not in (20, 21)]
    decided = 0
    for one in trickle:
        assert decided == 0
        site.store([one], over=over)
        decided = site.wait(11)
        if decided:
            break
    assert site.passed == pytest.approx(605)
    assert not site.verdict().complete
    assert site.verdict().reason.startswith("the limit of 600 s since the first instance has passed")
    assert site.verdict().missing == ("2 slices missing at 50.0, 52.5 mm, between instance 19 and instance 22",)


def test_a_study_of_localizers_waits_for_the_quiet_time_because_the_scan_may_follow(site: Site) -> None:
    site.send(localizer())
    assert site.wait(29.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().complete
    assert "no series that can be read (localizer)" in site.verdict().reason


def test_the_scan_that_follows_its_localizer_is_one_study_with_it(site: Site) -> None:
    site.send(localizer())
    assert site.wait(20) == 0
    site.send(series())
    assert site.wait(2) == 1
    assert site.verdict().complete
    assert site.claim().revision == 1


def test_a_study_without_images_ends_in_a_verdict_too(site: Site) -> None:
    site.send([report()])
    assert site.wait(30) == 1
    assert site.verdict().complete


def test_a_thick_series_waits_while_the_thin_one_arrives(site: Site) -> None:
    thin = site.associate()
    site.send(series())
    site.store(series("1.2.2", 100, step=0.625), over=thin)
    assert site.wait(5) == 0
    site.store(series("1.2.2", 140, step=0.625, first=101), over=thin)
    site.end(thin)
    assert site.wait(2) == 1


def test_a_whole_series_does_not_wait_for_a_bone_kernel_that_keeps_coming(site: Site) -> None:
    over = site.associate()
    site.store(series(), over=over)
    bone = series("1.2.5", 240, step=0.625, kernel="H60s")
    for second in range(29):
        assert site.wait(1) == 0
        site.store(bone[8 * second : 8 * second + 8], over=over)
    assert site.wait(1) == 1
    assert site.verdict().complete


def test_images_that_the_headers_announce_are_waited_for(site: Site) -> None:
    site.send(series(count=20, images_in_acquisition=28, acquisition_number=1))
    assert site.wait(29.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().missing == ("series 1: 20 of 28 images announced for acquisition 1",)


# Late slices, at every moment


def test_a_late_slice_before_the_verdict_is_part_of_it(site: Site) -> None:
    site.send(series(count=27))
    assert site.wait(1.9) == 0
    site.send(series(count=1, first=28))
    assert site.wait(1.9) == 0
    assert site.wait(0.1) == 1
    with site.database.read() as tx:
        assert len(instances.of_study(tx, STUDY, up_to_revision=1)) == 28


def test_a_late_slice_before_the_job_starts_joins_it(site: Site) -> None:
    site.send(series(count=27))
    assert site.wait(2) == 1
    site.send(series(count=1, first=28))
    assert site.wait() == 1
    assert site.study().state is StudyState.RECEIVING
    assert site.wait(2) == 1
    assert site.claim().revision == 1
    with site.database.read() as tx:
        assert len(instances.of_study(tx, STUDY, up_to_revision=1)) == 28
    assert site.told() == ["first_instance", "verdict", "verdict_recalled", "verdict", "job_started"]


def test_a_late_slice_while_the_job_runs_waits_for_its_result_and_opens_the_next_revision(site: Site) -> None:
    site.send(series(count=27))
    assert site.wait(2) == 1
    job = site.claim()
    site.send(series(count=1, first=28))
    assert [site.wait(5), site.wait(5)] == [0, 0]
    site.record(job)
    assert site.wait() == 1
    assert (site.study().state, site.study().revision) == (StudyState.RECEIVING, 2)
    assert site.wait(2) == 1
    assert site.claim().revision == 2


def test_a_late_slice_after_the_result_opens_the_next_revision(site: Site) -> None:
    site.send(series(count=27))
    assert site.wait(2) == 1
    site.read()
    assert site.wait(100) == 0
    site.send(series(count=1, first=28))
    assert site.wait() == 1
    assert (site.study().state, site.study().revision) == (StudyState.RECEIVING, 2)
    assert site.wait(1.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().complete
    assert "series 1: 28 slices" in site.verdict().reason
    with site.database.read() as tx:
        (opened,) = [e for e in audit.timeline(tx, STUDY) if e.event == "revision_opened"]
    assert opened.detail["reason"] == "1 instance of a series that was read came late"


def test_a_scan_that_comes_after_its_localizers_were_not_analysed_is_read(site: Site) -> None:
    site.send(localizer())
    assert site.wait(30) == 1
    site.read(read=(), outcome=Outcome.NOT_ANALYSED)
    over = site.associate()
    site.store(series()[:1], over=over)
    assert site.wait() == 1  # slices are encoded while they arrive, so the revision opens with the first
    site.store(series()[1:], over=over)
    site.end(over)
    assert site.wait(2) == 1
    assert site.claim().revision == 2


def test_a_reconstruction_after_the_result_is_noted_once_and_changes_nothing(site: Site) -> None:
    site.send(series())
    assert site.wait(2) == 1
    site.read()
    bone = series("1.2.5", 60, kernel="H60s")
    for part in range(6):
        site.send(bone[10 * part : 10 * part + 10])
        assert site.wait(3) == 0
    assert site.wait(30) == 1
    assert (site.study().state, site.study().revision) == (StudyState.REPORTED, 1)
    with site.database.read() as tx:
        (note,) = [e for e in audit.timeline(tx, STUDY) if e.event == "late_instances"]
    assert note.detail["instances"] == 60
    assert "sharp_kernel" in note.detail["reason"]
    assert site.wait(100) == 0


def test_a_better_series_after_the_result_is_read_as_the_next_revision(site: Site) -> None:
    site.send(series("1.2.2", 240, step=0.625))
    assert site.wait(2) == 1
    site.read(read=("1.2.2",))
    site.send(series())
    assert site.wait() == 1
    assert site.wait(2) == 1
    assert site.claim().revision == 2


def test_our_own_reports_that_come_back_never_open_a_revision(site: Site) -> None:
    site.send(series())
    site.send([report(1)], sender="PACS")
    assert site.wait(2) == 1
    site.send([report(2)], sender="PACS")
    assert site.wait(3) == 0  # before the job starts
    job = site.claim()
    site.send([report(3)], sender="PACS")
    assert site.wait(3) == 0  # while it runs
    site.record(job)
    for number in range(4, 8):
        site.send([report(number)], sender="PACS")
        site.wait(31)
    assert (site.study().state, site.study().revision) == (StudyState.REPORTED, 1)
    with site.database.read() as tx:
        assert len(jobs.of_study(tx, STUDY)) == 1
        assert not instances.unconsidered(tx, STUDY)


def test_a_report_that_comes_back_does_not_hold_up_the_next_revision(site: Site) -> None:
    site.send(series(count=27))
    assert site.wait(2) == 1
    site.read()
    site.send(series(count=1, first=28))
    assert site.wait() == 1
    site.store([report()], over=site.associate("PACS"))  # an association that the PACS keeps open
    assert site.wait(2) == 1
    assert site.verdict().complete


def test_a_study_that_failed_gets_another_chance_with_the_next_slice_but_not_with_a_report(site: Site) -> None:
    site.send(series(count=27))
    assert site.wait(2) == 1
    with site.database.write() as tx:
        job = jobs.claim(tx, owner="w", lease=LEASE)
        assert job is not None
        jobs.fail(tx, job, error="boom", attempts=1)
    site.send([report()])
    assert site.wait(31) == 1
    assert site.study().state is StudyState.FAILED
    site.send(series(count=1, first=28))
    assert site.wait() == 1
    assert site.study().state is StudyState.RECEIVING


def test_a_revision_that_somebody_asks_for_has_its_verdict_at_once(site: Site) -> None:
    site.send(series())
    assert site.wait(2) == 1
    site.read()
    with site.database.write() as tx:
        assert studies.reopen(tx, STUDY, reason="asked for") == 2
    assert site.wait(10) == 1
    assert site.verdict().complete
    assert site.claim().revision == 2


# Clocks


@pytest.mark.parametrize("step", [dt.timedelta(hours=-3), dt.timedelta(hours=3)], ids=["back", "forward"])
def test_a_clock_that_is_set_neither_hurries_nor_holds_a_verdict(site: Site, step: dt.timedelta) -> None:
    over = site.associate()
    site.store(series()[:14], over=over)
    assert site.wait(5) == 0
    site.clock_set_by = step
    assert site.wait(5) == 0
    site.store(series()[14:], over=over)
    assert site.wait() == 0
    assert site.wait(29.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().complete


def test_a_process_that_starts_with_a_clock_set_back_waits_no_longer_than_anew(site: Site) -> None:
    site.store(series(), over=site.associate())
    site.clock_set_by = dt.timedelta(hours=-3)
    site.memory = Memory()
    assert site.wait() == 0
    assert site.wait(30) == 1


def test_a_process_that_starts_anew_counts_the_time_that_passed_without_it(site: Site) -> None:
    site.store(series(), over=site.associate())
    site.memory = Memory()
    assert site.wait(31) == 1


# Any order, any failure

Arrival = tuple[str, list[InstanceFacts]]


def scenario_parallel(chance: random.Random) -> list[Arrival]:
    """Slices of two series and a localizer, dealt to three associations in any order."""
    everything = [*series(), *series("1.2.2", 60, step=2.5), *localizer()]
    chance.shuffle(everything)
    return [(f"x{number}", everything[number::3]) for number in range(3)]


def scenario_gap(chance: random.Random) -> list[Arrival]:
    """A series that lacks its 12th slice, in any order over one association."""
    lacking = [one for one in series() if one.instance_number != 12]
    chance.shuffle(lacking)
    return [("x0", lacking)]


@pytest.mark.parametrize("scenario", [scenario_parallel, scenario_gap])
def test_any_order_of_arrival_gives_the_same_verdict(
    either_database: Database, scenario: Callable[[random.Random], list[Arrival]]
) -> None:
    site = Site(either_database, Settings(assemble=WAITS))
    verdicts = set()
    for seed in range(4):
        chance = random.Random(seed)
        study = f"2.{seed}"
        arriving = [(site.associate(), shuffled) for _, shuffled in scenario(chance)]
        while arriving:
            place = chance.randrange(len(arriving))
            over, left = arriving[place]
            count = chance.randint(1, 12)
            batch = [dataclasses.replace(f, sop_instance_uid=f"{f.sop_instance_uid}.{seed}") for f in left[:count]]
            site.store(batch, over=over, study=study)
            assert site.wait(chance.uniform(0.0, 4.0)) == 0
            del left[:count]
            if not left:
                arriving.pop(place)
                if arriving:
                    site.end(over)
        site.end(over)
        if not site.wait(2):
            assert site.wait(30) == 1
        verdict = site.verdict(study)
        verdicts.add((verdict.complete, verdict.missing))
    assert len(verdicts) == 1


def test_one_bad_study_stops_no_other_and_is_read_as_it_is_after_the_limit(site: Site) -> None:
    with site.database.write() as tx:
        instances.add(tx, stored({"no": "facts"}, over="a", study="6.6.6", uid="6.6.6.1"))
    site.send(series())
    assert site.wait(2) == 1
    assert site.study().state is StudyState.COMPLETE
    assert site.told("6.6.6") == ["first_instance", "assembly_failed"]
    with asked_of(site.database) as asked:
        site.wait(0.1)
    assert not any("instances.facts" in statement for statement in asked)  # it is tried again, but not at every tick
    waited = 0
    while site.study("6.6.6").state is StudyState.RECEIVING:
        assert waited < 700
        site.wait(10)
        waited += 10
    assert site.told("6.6.6") == ["first_instance", "assembly_failed", "verdict"]
    assert not site.verdict("6.6.6").complete
    assert "could not be judged (TypeError" in site.verdict("6.6.6").reason


def test_a_database_that_is_gone_is_not_a_studys_failure(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'nowhere' / 'hemonode.db'}")
    with pytest.raises(sa.exc.OperationalError):
        assemble.tick(database, Settings(), model="triage", memory=Memory())


def test_two_schedule_processes_pronounce_one_verdict(site: Site) -> None:
    for number in range(10):
        site.send(
            [dataclasses.replace(f, sop_instance_uid=f"{f.sop_instance_uid}.{number}") for f in series()],
            study=f"3.{number}",
        )
    at = Moment(wall=now() + dt.timedelta(seconds=60), steady=5000.0)

    def tick(memory: Memory) -> int:
        return assemble.tick(site.database, site.settings, model="triage", memory=memory, at=at)

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(tick, [Memory(), Memory()])) == 10
    with site.database.read() as tx:
        assert jobs.count_by_state(tx) == {JobState.TODO: 10}


def test_a_tick_asks_the_database_three_things_when_nothing_has_changed(site: Site) -> None:
    for number in range(5):
        site.store(
            [dataclasses.replace(f, sop_instance_uid=f"{f.sop_instance_uid}.{number}") for f in series()],
            over=site.associate(),
            study=f"3.{number}",
        )
    site.wait(3)
    with asked_of(site.database) as asked:
        assert site.wait(1) == 0
    assert len([statement for statement in asked if statement.startswith("SELECT")]) == 3


def test_slices_are_analysed_while_a_study_settles_so_that_its_verdict_falls_without_delay(site: Site) -> None:
    site.send(series())
    with asked_of(site.database) as asked:
        assert site.wait(1) == 0
    assert any("instances.facts" in statement for statement in asked)
    with asked_of(site.database) as asked:
        assert site.wait(1) == 1
    assert not any("instances.facts" in statement for statement in asked)


def test_a_report_that_is_filed_is_not_held_against_a_whole_study(site: Site) -> None:
    site.send(series())
    assert site.wait(2) == 1
    site.read()
    site.send([report()])
    with asked_of(site.database) as asked:
        assert site.wait(5) == 0
    loading = [statement for statement in asked if "instances.facts" in statement]
    assert len(loading) == 1
    assert "revision IS NULL" in loading[0]


def test_a_study_is_pronounced_with_the_criteria_of_the_site(either_database: Database) -> None:
    """Where bone kernels may be read, a study of one is whole without waiting for a softer one."""
    site = Site(either_database, Settings(assemble=WAITS, select=Criteria(accepted_kernels=("H60s",))))
    site.send(series(kernel="H60s"))
    assert site.wait(2) == 1
    assert site.verdict().complete


# Performed procedure steps (MPPS)


def listing(*made: Iterable[InstanceFacts], study: str = STUDY, status: str = "COMPLETED") -> dict[str, Any]:
    """What a scanner says when its examination ends: the status, and the instances by series."""
    by_series: dict[str, list[str]] = {}
    for one in itertools.chain(*made):
        by_series.setdefault(one.series_uid, []).append(one.sop_instance_uid)
    items = [
        data_set(
            SeriesInstanceUID=uid,
            ReferencedImageSequence=[data_set(ReferencedSOPInstanceUID=instance) for instance in instances],
        )
        for uid, instances in by_series.items()
    ]
    return data_set(
        ScheduledStepAttributesSequence=data_set(StudyInstanceUID=study),
        PerformedProcedureStepStatus=status,
        PerformedSeriesSequence=items,
    )


def begin(site: Site, *, uid: str = "9.1", study: str = STUDY) -> None:
    with site.database.write() as tx:
        began = listing(study=study, status="IN PROGRESS")
        assert performed_steps.create(tx, uid=uid, ae_title="CT1", dataset=began)


def finish(site: Site, *made: Iterable[InstanceFacts], uid: str = "9.1", **how: Any) -> None:
    with site.database.write() as tx:
        step = performed_steps.find(tx, uid)
        assert step is not None
        performed_steps.update(tx, step, changes=listing(*made, **how))


def step(site: Site, *made: Iterable[InstanceFacts], uid: str = "9.1", study: str = STUDY, **how: Any) -> None:
    begin(site, uid=uid, study=study)
    finish(site, *made, uid=uid, study=study, **how)


DOSE = [dataclasses.replace(report(), series_uid="1.2.8", sop_instance_uid="1.2.8.1")]
LISTED = "the performed procedure step lists"


def test_what_the_scanner_lists_has_come_and_the_study_is_complete_at_once(site: Site) -> None:
    step(site, localizer(), series())
    over = site.associate()
    site.store([*localizer(), *series()[:-1]], over=over)
    assert site.wait(5) == 0
    site.store(series()[-1:], over=over)
    assert site.wait() == 1  # nothing settles, and the association is open
    assert site.verdict().complete
    assert site.verdict().reason == (
        f"all 30 instances that {LISTED} have come; series 1: 28 slices over 140 mm, none missing between them"
    )


def test_the_list_of_a_scanner_may_come_last_and_ends_the_wait(site: Site) -> None:
    begin(site)
    over = site.associate()
    site.store(series(), over=over)
    assert [site.wait(5), site.wait(5)] == [0, 0]
    finish(site, series())
    assert site.wait() == 1
    assert site.verdict().complete


def test_what_the_scanner_lists_and_did_not_send_is_waited_for_as_long_as_any_may(site: Site) -> None:
    step(site, series())
    site.send(series(count=26))
    assert [site.wait(2), site.wait(100), site.wait(400)] == [0, 0, 0]
    assert site.wait(98) == 1
    assert not site.verdict().complete
    assert f"series 1: 26 of 28 images that {LISTED}" in site.verdict().missing


def test_a_slice_that_was_waited_for_completes_the_study_at_once(site: Site) -> None:
    step(site, series())
    site.send(series(count=27))
    assert site.wait(100) == 0
    site.send(series(count=1, first=28))
    assert site.wait() == 1
    assert site.verdict().complete


def test_a_list_beyond_what_is_to_be_read_holds_nothing_up(site: Site) -> None:
    """A dose report for another system, and thin slices for a workstation."""
    step(site, series(), DOSE, series("1.2.2", 280, step=0.5))
    over = site.associate()
    site.store(series(), over=over)
    assert site.wait(1.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().complete
    assert f"listed: series 1 came as {LISTED} it; 281 of 309 instances that {LISTED} have not come" in (
        site.verdict().evidence
    ), site.verdict().evidence


def test_a_localizer_alone_is_not_taken_for_a_study_whose_scan_is_listed(site: Site) -> None:
    step(site, localizer(), series())
    site.send(localizer())
    assert site.wait(29.9) == 0
    assert site.wait(0.1) == 1
    assert not site.verdict().complete
    assert site.verdict().missing == (f"28 of 30 instances that {LISTED} have not come",)


def test_a_step_in_progress_holds_nothing_up(site: Site) -> None:
    begin(site)
    site.send(series())
    assert site.wait(2) == 1
    assert site.verdict().complete


def test_a_step_that_was_discontinued_ends_the_wait_and_the_reason_says_so(site: Site) -> None:
    begin(site)
    over = site.associate()
    site.store(series(), over=over)
    assert site.wait(5) == 0
    finish(site, status="DISCONTINUED")
    assert site.wait() == 1
    assert site.verdict().complete
    assert "the performed procedure step was discontinued" in site.verdict().reason


def test_what_came_of_a_discontinued_step_is_read_with_what_is_missing_named(site: Site) -> None:
    step(site, series(), status="DISCONTINUED")
    whole = series(count=20)
    site.store([*whole[:10], *whole[11:]], over=site.associate())
    assert site.wait(1.9) == 0
    assert site.wait(0.1) == 1
    assert not site.verdict().complete
    assert "was discontinued" in site.verdict().reason
    assert f"series 1: 19 of 28 images that {LISTED}" in site.verdict().missing


def test_a_gap_in_what_the_scanner_lists_and_sent_is_not_waited_for_but_named(site: Site) -> None:
    whole = series()
    gappy = [*whole[:10], *whole[11:]]
    step(site, gappy)
    site.store(gappy, over=site.associate())
    assert site.wait(1.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().missing == ("1 slice missing at 55.0 mm, between instance 10 and instance 12",)


def test_an_association_that_broke_off_is_made_good_by_the_list(site: Site) -> None:
    step(site, series())
    over = site.associate()
    site.store(series(), over=over)
    site.end(over, ABORTED)
    assert site.wait() == 1
    assert site.verdict().complete


@pytest.mark.parametrize(
    "made",
    [
        [dataclasses.replace(one, sop_instance_uid=f"8.{one.sop_instance_uid}") for one in series()],
        series(count=10),
        [],
        series("1.2.5"),
    ],
    ids=["other UIDs than were sent", "fewer than were sent", "nothing", "another series"],
)
def test_a_list_that_does_not_describe_what_came_changes_nothing(site: Site, made: list[InstanceFacts]) -> None:
    step(site, made)
    site.send(series())
    assert site.wait(1.9) == 0
    assert site.wait(0.1) == 1
    assert site.verdict().complete


def test_the_step_of_another_study_changes_nothing(site: Site) -> None:
    step(site, series(count=40), study="1.3")
    site.send(series())
    assert site.wait(2) == 1
    assert site.verdict().complete


def test_of_two_steps_the_study_is_complete_when_both_are(site: Site) -> None:
    thin = series("1.2.2", 280, step=0.5)
    step(site, series())
    begin(site, uid="9.2")
    over = site.associate()
    site.store([*series(), *thin], over=over)
    assert site.wait(5) == 0
    finish(site, thin, uid="9.2")
    assert site.wait() == 1
    assert site.verdict().reason.startswith(f"all 308 instances that {LISTED} have come")


def test_a_list_that_comes_after_the_verdict_says_in_the_timeline_what_is_not_here(site: Site) -> None:
    begin(site)
    site.send(series())
    site.wait(2)
    finish(site, series(count=30))
    with site.database.read() as tx:
        told = audit.timeline(tx, STUDY)[-1]
    assert told.event == "step_completed"
    assert told.detail == {"step_uid": "9.1", "instances": 30, "not_here": 2, "after_verdict": True}
