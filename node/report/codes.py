"""Every coded concept of the report, once, with where it comes from and how far it was verified."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept

PRIVATE_SCHEME = "99HEMONODE"
"""Our own codes (PS3.3 table 8.1-1: a private designator begins with 99); declared in every report that uses them."""

UNSPECIFIED = "unspecified"
"""The reason code where none was given."""

_LONGEST_MEANING = 64  # Code Meaning is LO, PS3.5 table 6.2-1


class Source(StrEnum):
    """Where a code was seen, the best verified first."""

    DICTIONARY = "the dictionary of PS3.16 and its context groups, as pydicom ships it"
    PUBLISHED = "several published value sets (OHDSI vocabularies, HL7), not the dictionary of PS3.16"
    SINGLE_LIST = "public lists derived from OHDSI Athena only; ask a terminology server before a clinical claim"
    OWN = "Hemonode's own"


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A coded concept: `value` in the coding scheme `scheme` means `meaning` (PS3.3 8.8)."""

    value: str
    scheme: str
    meaning: str
    source: Source

    def coded(self) -> CodedConcept:
        """The concept as an item of a code sequence."""
        return CodedConcept(value=self.value, scheme_designator=self.scheme, meaning=self.meaning)


@dataclass(frozen=True, kw_only=True)
class Haemorrhage:
    """What a label of the models is called in a report: Finding (121071) at a Finding Site (363698007)."""

    finding: Concept
    site: Concept


def _dcm(*, value: str, meaning: str) -> Concept:
    return Concept(value=value, scheme="DCM", meaning=meaning, source=Source.DICTIONARY)


def _sct(*, value: str, meaning: str, source: Source = Source.DICTIONARY) -> Concept:
    return Concept(value=value, scheme="SCT", meaning=meaning, source=source)


def _own(*, value: str, meaning: str) -> Concept:
    return Concept(value=value, scheme=PRIVATE_SCHEME, meaning=meaning, source=Source.OWN)


# The findings. For intraventricular haemorrhage no single code could be verified, so it is composed of two that were.
INTRACRANIAL_HAEMORRHAGE = _sct(value="1386000", meaning="Intracranial hemorrhage")
HAEMORRHAGE = _sct(value="50960005", meaning="Hemorrhage")
CEREBRAL_HAEMORRHAGE = _sct(value="274100004", meaning="Cerebral hemorrhage", source=Source.PUBLISHED)
SUBARACHNOID_HAEMORRHAGE = _sct(value="21454007", meaning="Subarachnoid hemorrhage", source=Source.PUBLISHED)
SUBDURAL_HAEMORRHAGE = _sct(value="35486000", meaning="Subdural intracranial hemorrhage", source=Source.SINGLE_LIST)
EPIDURAL_HAEMORRHAGE = _sct(value="82999001", meaning="Epidural intracranial hemorrhage", source=Source.SINGLE_LIST)

INTRACRANIAL = _sct(value="1101003", meaning="Intracranial")
BRAIN = _sct(value="12738006", meaning="Brain")
BRAIN_VENTRICLE = _sct(value="35764002", meaning="Brain ventricle")
SUBARACHNOID_SPACE = _sct(value="35951006", meaning="Subarachnoid space")
MENINGES = _sct(value="1231004", meaning="Meninges")

HAEMORRHAGES: dict[str, Haemorrhage] = {
    "any": Haemorrhage(finding=INTRACRANIAL_HAEMORRHAGE, site=INTRACRANIAL),
    "intraparenchymal": Haemorrhage(finding=CEREBRAL_HAEMORRHAGE, site=BRAIN),
    "intraventricular": Haemorrhage(finding=HAEMORRHAGE, site=BRAIN_VENTRICLE),
    "subarachnoid": Haemorrhage(finding=SUBARACHNOID_HAEMORRHAGE, site=SUBARACHNOID_SPACE),
    "subdural": Haemorrhage(finding=SUBDURAL_HAEMORRHAGE, site=MENINGES),
    "epidural": Haemorrhage(finding=EPIDURAL_HAEMORRHAGE, site=MENINGES),
}
"""By label of `inference.result.LABELS`."""

# What is said about a finding.
PRESENCE = _sct(value="705057003", meaning="Presence", source=Source.PUBLISHED)
PRESENT = _sct(value="52101004", meaning="Present")  # this and the next two: CID 240
ABSENT = _sct(value="272519000", meaning="Absent")
UNDETERMINED = _sct(value="373068000", meaning="Undetermined")
PROBABILITY = _dcm(value="122157", meaning="Probability")
SCORE = _sct(value="246262008", meaning="Score")
NO_UNITS = Concept(value="1", scheme="UCUM", meaning="no units", source=Source.DICTIONARY)
ARTIFICIAL_INTELLIGENCE = _dcm(value="123110", meaning="Artificial Intelligence")  # CID 7162

# The frame of the report.
IMAGING_MEASUREMENT_REPORT = _dcm(value="126000", meaning="Imaging Measurement Report")  # CID 7021
DEVICE = _dcm(value="121007", meaning="Device")  # CID 270

# What is said about the study. TID 1500 row 12 puts it into a container of its own.
CT = Concept(value="25045-6", scheme="LN", meaning="CT unspecified body region", source=Source.DICTIONARY)  # CID 100
CT_HEAD = Concept(value="24725-4", scheme="LN", meaning="CT Head", source=Source.DICTIONARY)  # not in CID 100
IMAGING_PROCEDURE = _sct(value="363679005", meaning="Imaging procedure")  # CID 100
QUALITATIVE_EVALUATIONS = Concept(
    value="C0034375", scheme="UMLS", meaning="Qualitative Evaluations", source=Source.PUBLISHED
)
COMMENT = _dcm(value="121106", meaning="Comment")
CONCLUSION = _dcm(value="121077", meaning="Conclusion")
SERIES_INSTANCE_UID = _dcm(value="112002", meaning="Series Instance UID")
COMPLETE = _sct(value="255594003", meaning="Complete")
INCOMPLETE = _dcm(value="130574", meaning="Incomplete study")  # CID 6314
COMPLETENESS = _own(value="completeness", meaning="Completeness of the study")
COMPLETENESS_REASON = _own(value="verdict", meaning="How completeness was judged")
MISSING = _own(value="missing", meaning="Missing from the study")
SERIES_READ = _own(value="series_read", meaning="Series read, because")
SERIES_NOT_READ = _own(value="series_not_read", meaning="Series not read, because")
EXPLANATION = _own(value="explanation", meaning="Explanation")
WARNING = _own(value="warning", meaning="Warning")

# Why a study was not analysed.
NOT_ANALYSED_REASON = _own(value="not_analysed", meaning="Reason why the study was not analysed")
NONE_SUITABLE = _own(value="none_suitable", meaning="No series is suitable for reading")
NOTHING_RECEIVED = _own(value="no_series", meaning="No series is known")
OUT_OF_DISTRIBUTION = _own(value="out_of_distribution", meaning="The scan is unlike those the models were trained on")
NO_CONCLUSION = _own(value="no_conclusion", meaning="A series was chosen, but reading it came to no conclusion")

# What masks enclose, and what a segment is of. Only where a site has turned locations on.
VOLUME = _sct(value="118565006", meaning="Volume")
MINIMUM = _sct(value="255605001", meaning="Minimum")
MAXIMUM = _sct(value="56851009", meaning="Maximum")
CUBIC_CENTIMETRE = Concept(value="cm3", scheme="UCUM", meaning="cubic centimeter", source=Source.DICTIONARY)
ABNORMAL_STRUCTURE = _sct(value="49755003", meaning="Morphologically Abnormal Structure")  # CID 7150


def own_reason(code: str) -> Concept:
    """The concept for a reason code that the selection of series gave, such as ``too_few_slices``.

    Its meaning is the code in words; the sentence that goes with it says the rest.
    """
    words = code.replace("_", " ").strip()[:_LONGEST_MEANING]
    return _own(value=code or UNSPECIFIED, meaning=words or UNSPECIFIED)


def private_scheme() -> CodingSchemeIdentificationItem:
    """The item of the Coding Scheme Identification Sequence that declares our own codes (PS3.3 C.12.1.1.7)."""
    return CodingSchemeIdentificationItem(
        designator=PRIVATE_SCHEME,
        name="Hemonode's reasons and statements",
        responsible_organization="Hemonode",
    )
