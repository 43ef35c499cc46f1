"""The prompts of a run: balanced over categories, languages and difficulties, seeded, no two alike.

Made from templates and real code.
The same settings give the same prompts; the order mixes the categories, so that a run stopped early is
balanced too.
Knows nothing of teachers or of money.
"""

import hashlib
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from distillcache.errors import ConfigError
from distillcache.generate.languages import LANGUAGES
from distillcache.generate.mutations import mutate, mutations, one_mutation
from distillcache.generate.sources import STANDARD_LIBRARY, Piece, cut, source_files
from distillcache.generate.templates import BUILTIN, DIFFICULTIES, Category, Text, load_categories

__all__ = ["Prompt", "make_prompts", "prompt_bytes", "space_size"]

_OWN_TOKENS = (50, 1000)


@dataclass(frozen=True)
class Prompt:
    """One prompt. `id` is a hash of its text; `origin` and `mutation` say where its code comes from and what
    was broken.

    `language` is None when it is not about one; `answer_tokens` is the least and most an answer is expected
    to take.
    """

    text: str
    category: str
    language: str | None
    difficulty: str | None
    code_due: bool
    answer_tokens: tuple[int, int] = _OWN_TOKENS
    system: str | None = None
    origin: str | None = None
    mutation: str | None = None
    id: str = field(init=False)

    def __post_init__(self) -> None:
        whole = json.dumps([self.system, self.text], ensure_ascii=False)
        object.__setattr__(
            self, "id", hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:20]
        )


@dataclass(frozen=True, eq=False)
class _Leaf:
    """What the templates hold for one category, language and difficulty."""

    category: Category
    language: str
    difficulty: str

    @property
    def texts(self) -> tuple[Text, ...]:
        return self.category.texts.get((self.language, self.difficulty), ())


class _Pool:
    """Pieces of real code, cut as far as they are needed: by language and difficulty."""

    def __init__(self, named: Sequence[str], random: Random) -> None:
        self._files = source_files(named)
        self.languages = tuple(dict.fromkeys(file.language for file in self._files))
        self._cut = cut(self._files, random)
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        self._spent = False

    def pieces(self, language: str, difficulty: str, wanted: int | None) -> list[Piece]:
        """At least `wanted` pieces where there are so many; all there are for None."""
        mine = self._pieces.setdefault((language, difficulty), [])
        while not self._spent and (wanted is None or len(mine) < wanted):
            piece = next(self._cut, None)
            if piece is None:
                self._spent = True
            else:
                self._pieces.setdefault((piece.language, piece.difficulty), []).append(piece)
        return mine


def make_prompts(
    count: int,
    *,
    seed: int = 0,
    templates: Sequence[str] = (BUILTIN,),
    code: Sequence[str] = (STANDARD_LIBRARY,),
    categories: Sequence[str] = (),
    languages: Sequence[str] = (),
    difficulties: Sequence[str] = DIFFICULTIES,
    system: str | None = None,
) -> list[Prompt]:
    """`count` distinct prompts; empty `categories` or `languages` mean all that the templates hold.

    Raises `ConfigError` when the templates hold fewer, with the number that they do hold.
    """
    leaves, pool = _leaves(templates, code, categories, languages, difficulties, seed)
    shares = _balance(leaves, count, seed)
    texts: dict[_Leaf, Iterator[Prompt]] = {}
    taken: Counter[tuple[str, str, str]] = Counter()
    for leaf, share in Counter(shares).items():
        made = _fill(leaf, share, pool, seed, system, taken)
        if len(made) < share:
            holds = sum(_size(each, pool) for each in leaves)
            raise ConfigError(
                f"--count: the templates hold {len(made)} distinct prompts of category {leaf.category.name}, "
                f"language {leaf.language}, difficulty {leaf.difficulty}, and {share} are needed for {count} "
                f"in balance; they hold {holds} in all; ask for fewer, or give more --templates or --code"
            )
        texts[leaf] = iter(made)
    prompts = [next(texts[leaf]) for leaf in shares]
    if len({prompt.id for prompt in prompts}) < count:
        raise ConfigError("--templates: two categories hold the same text; every prompt must be there once")
    return prompts


def space_size(
    *,
    templates: Sequence[str] = (BUILTIN,),
    code: Sequence[str] = (STANDARD_LIBRARY,),
    categories: Sequence[str] = (),
    languages: Sequence[str] = (),
    difficulties: Sequence[str] = DIFFICULTIES,
) -> int:
    """Number of distinct prompts that templates and code hold together. Reads all the code."""
    leaves, pool = _leaves(templates, code, categories, languages, difficulties, 0)
    return sum(_size(leaf, pool) for leaf in leaves)


def _leaves(
    templates: Sequence[str],
    code: Sequence[str],
    categories: Sequence[str],
    languages: Sequence[str],
    difficulties: Sequence[str],
    seed: int,
) -> tuple[list[_Leaf], _Pool | None]:
    known = load_categories(templates)
    for name in categories:
        if name not in known:
            raise ConfigError(f"--categories: no template of category `{name}`; there are {', '.join(known)}")
    for name in languages:
        if name not in LANGUAGES:
            raise ConfigError(f"--languages: unknown language `{name}`; known are {', '.join(LANGUAGES)}")
    for name in difficulties:
        if name not in DIFFICULTIES:
            raise ConfigError(
                f"--difficulties: unknown difficulty `{name}`; known are {', '.join(DIFFICULTIES)}"
            )
    chosen = [known[name] for name in (categories or known)]
    of_code = any(text.source for category in chosen for texts in category.texts.values() for text in texts)
    pool = _Pool(code, Random(f"{seed} code")) if of_code else None
    leaves = [
        _Leaf(category, language, difficulty)
        for category in chosen
        for language in (languages or LANGUAGES)
        for difficulty in difficulties
        if any(
            _source_languages(text, language, pool) for text in category.texts.get((language, difficulty), ())
        )
    ]
    missing = [c.name for c in chosen if not any(leaf.category is c for leaf in leaves)]
    if missing:
        raise ConfigError(
            f"--categories: nothing to ask in category {missing[0]} with languages "
            f"{', '.join(languages) or 'all'}; choose other languages, or give --code of these languages"
        )
    return leaves, pool


def _source_languages(text: Text, language: str, pool: _Pool | None) -> tuple[str, ...]:
    """Languages whose code this text can take; one empty string for a text that takes none."""
    if text.source is None or pool is None:
        return ("",)
    return tuple(each for each in pool.languages if (each == language) == (text.source == "same"))


def _balance(leaves: Sequence[_Leaf], count: int, seed: int) -> list[_Leaf]:
    """A leaf for each prompt: categories in turn, in each the language, then the difficulty, that is furthest
    behind.

    Where every category has every language this is a plain round; where some have not, the others give way,
    so that
    totals by language still come out even.
    """
    random = Random(f"{seed} balance")
    by_category: dict[str, dict[str, list[_Leaf]]] = {}
    for leaf in leaves:
        by_category.setdefault(leaf.category.name, {}).setdefault(leaf.language, []).append(leaf)
    # Languages with few categories first, so that those which can go anywhere fill the gaps.
    homes = Counter(language for group in by_category.values() for language in group)
    tie = {language: (homes[language], random.random()) for language in sorted(homes)}
    turn = sorted(by_category, key=lambda name: (len(by_category[name]), name))
    random.shuffle(turn)
    of_language: Counter[str] = Counter()
    of_cell: Counter[tuple[str, str]] = Counter()
    of_leaf: Counter[_LeafKey] = Counter()
    of_difficulty: Counter[str] = Counter()
    order = []
    for number in range(count):
        name = turn[number % len(turn)]
        group = by_category[name]
        language = min(group, key=lambda each: (of_language[each], of_cell[name, each], tie[each]))
        leaf = min(
            group[language],
            key=lambda each: (of_leaf[name, each.language, each.difficulty], of_difficulty[each.difficulty]),
        )
        of_language[language] += 1
        of_cell[name, language] += 1
        of_leaf[name, language, leaf.difficulty] += 1
        of_difficulty[leaf.difficulty] += 1
        order.append(leaf)
    return order


_LeafKey = tuple[str, str, str]


def _size(leaf: _Leaf, pool: _Pool | None) -> int:
    return sum(
        text.size * (1 if not source else _variants(leaf, pool, source))
        for text in leaf.texts
        for source in _source_languages(text, leaf.language, pool)
    )


def _variants(leaf: _Leaf, pool: _Pool | None, source: str) -> int:
    assert pool is not None
    pieces = pool.pieces(source, leaf.difficulty, None)
    if not leaf.category.mutate:
        return len(pieces)
    return sum(len(mutations(piece.language, piece.code)) for piece in pieces)


def _fill(
    leaf: _Leaf,
    share: int,
    pool: _Pool | None,
    seed: int,
    system: str | None,
    taken: Counter[tuple[str, str, str]],
) -> list[Prompt]:
    """`share` distinct prompts of a leaf, or as many as it holds."""
    random = Random(f"{seed} {leaf.category.name} {leaf.language} {leaf.difficulty}")
    plain = [text for text in leaf.texts if text.source is None]
    coded = [
        (text, source)
        for text in leaf.texts
        if text.source is not None
        for source in _source_languages(text, leaf.language, pool)
    ]
    sizes = [text.size for text in plain]
    of_plain = share if not coded else min(sum(sizes), share * len(plain) // (len(plain) + len(coded)))
    made: dict[str, Prompt] = {}

    def add(
        text: Text, index: int, piece: Piece | None = None, code: str = "", mutation: str | None = None
    ) -> None:
        values = {"language": LANGUAGES[leaf.language].name, "difficulty": leaf.difficulty}
        if piece is not None:
            values |= {
                "source_language": LANGUAGES[piece.language].name,
                "source": _fenced(piece.language, code),
            }
        prompt = Prompt(
            text.fill(index, values), leaf.category.name, leaf.language, leaf.difficulty,
            leaf.category.code_due, leaf.category.answer_tokens, system,
            piece.origin if piece else None, mutation,
        )  # fmt: skip
        made.setdefault(prompt.id, prompt)

    # `range` counts up to a machine word; a space beyond that is sampled from its beginning.
    space = min(sum(sizes), sys.maxsize)
    for position in random.sample(range(space), min(of_plain, space)):
        number = 0
        while position >= sizes[number]:
            position -= sizes[number]
            number += 1
        add(plain[number], position)
    if coded and pool is not None:
        _fill_coded(leaf, share, pool, random, coded, taken, made, add)
    return list(made.values())


def _fill_coded(
    leaf: _Leaf,
    share: int,
    pool: _Pool,
    random: Random,
    coded: Sequence[tuple[Text, str]],
    taken: Counter[tuple[str, str, str]],
    made: Mapping[str, Prompt],
    add: Callable[..., None],
) -> None:
    """Take the next piece of the category each time, so that none comes twice before all have come
    once.
    """
    # Categories begin at different pieces, so that few functions are both explained and reviewed in a small
    # run.
    start = zlib.crc32(leaf.category.name.encode()) % 97
    misses = 0
    while len(made) < share and misses < 200:
        text, source = random.choice(coded)
        key = (leaf.category.name, source, leaf.difficulty)
        position = taken[key] + start
        pieces = pool.pieces(source, leaf.difficulty, position + 1)
        before = len(made)
        if pieces:
            piece = pieces[position % len(pieces)]
            taken[key] += 1
            if leaf.category.mutate:
                chosen = one_mutation(piece.language, piece.code, random)
                if chosen is not None:
                    add(text, random.randrange(text.size), piece, mutate(piece.code, chosen), str(chosen))
            else:
                add(text, random.randrange(text.size), piece, piece.code)
        misses = 0 if len(made) > before else misses + 1
    if len(made) >= share:
        return
    # Nearly everything is taken: go through what is left in order.
    for text, source in coded:
        for piece in pool.pieces(source, leaf.difficulty, None):
            options = mutations(piece.language, piece.code) if leaf.category.mutate else (None,)
            for option in options:
                code = piece.code if option is None else mutate(piece.code, option)
                for index in range(text.size):
                    if len(made) >= share:
                        return
                    add(text, index, piece, code, None if option is None else str(option))


def _fenced(language: str, code: str) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{LANGUAGES[language].tags[0]}\n{code}\n{fence}"


def prompt_bytes(prompt: Prompt) -> int:
    """UTF-8 bytes of everything that is sent, an upper bound of its tokens for any byte-level tokenizer."""
    return len(prompt.text.encode("utf-8", "replace")) + len((prompt.system or "").encode("utf-8", "replace"))
