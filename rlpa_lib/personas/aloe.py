"""ALOE's users: a profile and a personality each, those of test users apart from all others (appendix C.1).

ALOE meets each of its 331 profiles with ten personalities, drawn from its 71: 3,310 pairs. Ours are the same
pairs where `conversations.jsonl` lies beside the files; what a profile then lacks of ten is drawn by hash.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.personas import sources
from rlpa_lib.personas.conversations import FILE, read_conversations
from rlpa_lib.personas.extraction import extract_profile, hash_text
from rlpa_lib.personas.sources import TEST_USERS
from rlpa_lib.personas.text import adjust_pronouns, are_near, find_stems
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import SOURCES, Supply, resolve

PER_PROFILE = 10  # personalities a training profile meets, as in ALOE
HELD_OUT = 10  # one in so many personalities is kept for test users; ALOE keeps 7 beside its 71


@dataclass(frozen=True)
class Pair:
    """The two texts of a user, as the files have them."""

    id: str
    description: str
    personality: str


@dataclass(frozen=True)
class Texts:
    """What an ALOE folder holds: pairs of training and of test users, personalities that test users alone
    have (none where the folder has but one), and how the training users were made."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    held: tuple[str, ...]
    made: str

    def is_of_test(self, description: str, personality: str) -> bool:
        """Whether a pair holds a test user's profile or personality, word for word or nearly."""
        profiles = _Known.of(tuple(pair.description for pair in self.test))
        return profiles.has(description) or _Known.of(self.held).has(personality)


@dataclass(frozen=True)
class _Known:
    """Texts that another one is compared with."""

    texts: tuple[str, ...]
    stems: tuple[frozenset[str], ...]

    @staticmethod
    @cache
    def of(texts: tuple[str, ...]) -> "_Known":
        return _Known(texts, tuple(map(find_stems, texts)))

    def has(self, text: str) -> bool:
        """Whether `text` is or holds one of them, or shares most of its content words with one."""
        mine = find_stems(text)
        word_for_word = any(known in text for known in self.texts)
        return word_for_word or any(are_near(mine, stems) for stems in self.stems)


def load_aloe(cfg, split: str, n: int | None, seed: int) -> list[Persona]:
    """`load_personas` for ALOE: `vanilla` is 74 of its profiles (at most a quarter), `train` the pairs that
    share neither profile nor personality with these; `extended` comes from `cfg.personachat_path` or else
    from the built-in personas."""
    if split == "extended":
        if not cfg.personachat_path:
            return resolve(SOURCES["builtin"].make)(cfg, split, n, seed)
        return sources.take(_list_extended(cfg), cfg, split, n, seed)
    texts = read_texts(cfg)
    pairs = sources.take(texts.train if split == "train" else texts.test, cfg, split, n, seed)
    return [make_persona(pair) for pair in pairs]


def count_aloe(cfg, split: str) -> Supply:
    """How many users a split of ALOE has."""
    if split == "extended" and not cfg.personachat_path:
        return resolve(SOURCES["builtin"].count)(cfg, split)
    if split == "extended":
        n, file = len(_list_extended(cfg)), cfg.personachat_path
        return Supply(n, f"{file} gives {n} different personas to the extended benchmark")
    texts = read_texts(cfg)
    if split == "train":
        return Supply(len(texts.train), texts.made)
    n = len(texts.test)
    return Supply(n, f"{cfg.path} gives {n} test users (at most a quarter of its profiles)")


def make_persona(pair: Pair) -> Persona:
    """A user with pronouns of the profile's gender and slots found by rules (appendix C.2)."""
    personality = adjust_pronouns(pair.personality, pair.description)
    profile = extract_profile(pair.description, personality)
    return Persona(pair.id, pair.description, personality, profile)


def read_texts(cfg) -> Texts:
    """The pairs of `cfg.path`. InputError: it is no folder, or a file in it is missing or broken."""
    folder = sources.find_path(cfg)
    if not folder.is_dir():
        raise InputError(f"personas.path: {folder} is not a folder with profile.jsonl and personality.jsonl")
    names = ("profile.jsonl", "personality.jsonl", FILE)
    if missing := [name for name in names[:2] if not (folder / name).is_file()]:
        raise InputError(f"personas.path: {folder} holds no {missing[0]}")
    stamps = tuple((folder / name).stat().st_mtime_ns for name in names if (folder / name).is_file())
    return _read_texts(folder, stamps)


@cache
def _read_texts(folder: Path, stamps: tuple[int, ...]) -> Texts:
    """Kept as long as the files (`stamps`) are the same."""
    people = _number(sources.read_json_texts(folder / "profile.jsonl"))
    natures = _number(sources.read_json_texts(folder / "personality.jsonl"))
    kept = len(people) - min(TEST_USERS, len(people) // 4)
    theirs = natures[-max(1, len(natures) // HELD_OUT) :]
    test = tuple(
        Pair(f"aloe-{i:04d}", text, theirs[place % len(theirs)][1])
        for place, (i, text) in enumerate(people[kept:])
    )
    held = tuple(text for _, text in theirs) if len(natures) > 1 else ()
    apart = Texts((), test, held, "")
    talked = [pair for pair in _read_conversed(folder / FILE) if not apart.is_of_test(*pair)]
    given = [(i, text) for i, text in people[:kept] if not apart.is_of_test(text, "")]
    free = [(i, text) for i, text in natures if not apart.is_of_test("", text)]
    train = tuple(_pair_up(given, free, talked))
    return Texts(train, test, held, _tell(folder, train, talked, apart))


def _number(texts: Sequence[str]) -> list[tuple[int, str]]:
    """(place in the file from 1, text) of each different text, by hash: as good as shuffled, and independent
    of the file's order."""
    different = {hash_text(text): (place, text) for place, text in reversed([*enumerate(texts, start=1)])}
    return [different[key] for key in sorted(different)]


def _read_conversed(file: Path) -> list[tuple[str, str]]:
    """The different pairs of the conversations, in the order of the file; none without it."""
    talks = read_conversations(file) if file.is_file() else []
    return list(dict.fromkeys((talk.profile, talk.personality) for talk in talks))


def _pair_up(
    given: Sequence[tuple[int, str]], free: Sequence[tuple[int, str]], talked: Sequence[tuple[str, str]]
) -> Iterator[Pair]:
    """The pairs of the conversations, then for each profile as many more as it lacks of PER_PROFILE."""
    people, natures = ({text: place for place, text in some} for some in (given, free))
    met: dict[str, set[str]] = {text: set() for text in people}
    for number, (who, nature) in enumerate(talked, start=1):
        met.setdefault(who, set()).add(nature)
        place = people.get(who), natures.get(nature)
        yield Pair(_name(*place) if all(place) else f"aloe-talk-{number:04d}", who, nature)
    for place, who in given:
        by_hash = sorted(free, key=lambda nature: hash_text(f"{who}|{nature[1]}"))
        rest = [nature for nature in by_hash if nature[1] not in met[who]]
        for i, nature in rest[: max(0, PER_PROFILE - len(met[who]))]:
            yield Pair(_name(place, i), who, nature)


def _name(profile: int, personality: int) -> str:
    return f"aloe-{profile:04d}-{personality:02d}"


def _tell(folder: Path, train: Sequence[Pair], talked: Sequence, apart: Texts) -> str:
    people, natures = ({getattr(pair, key) for pair in train} for key in ("description", "personality"))
    kept = f"{len(apart.test)} profiles and {len(apart.held)} personalities are kept for test users"
    if not apart.held:
        kept = f"{len(apart.test)} profiles are kept for test users, with the one personality that there is"
    drawn = f"{len(train) - len(talked):,} drawn, up to {PER_PROFILE} a profile"
    return (
        f"{folder} gives {len(train):,} training users: pairs of {len(people)} profiles and {len(natures)} "
        f"personalities ({len(talked):,} from {FILE}, {drawn}); {kept}"
    )


def _list_extended(cfg) -> list[Persona]:
    return sources.read_different(cfg.personachat_path)[:TEST_USERS]
