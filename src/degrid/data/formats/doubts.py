"""Doubts about what the values in masks mean: what `degrid data check` calls a problem, and what stops training."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from degrid.data.formats.copies import Seen, copied_masks, overlaps
from degrid.data.formats.folder import UNREAD_SPLITS
from degrid.data.formats.layout import Crowds, Layout
from degrid.data.formats.masks import Color, MaskRule
from degrid.data.formats.matching import without_number
from degrid.data.formats.pairs import by_chance
from degrid.data.formats.source import LazySources
from degrid.data.formats.tools.label_files import is_background
from degrid.data.formats.values import SOFT, Survey, Surveys, total
from degrid.lookup import did_you_mean, some
from degrid.raster import is_tiff, tiff_header
from degrid.types import IGNORE_INDEX, LabelSpace, UserError


class Doubt(NamedTuple):
    """What looks wrong: its kind, a row of `DOUBTS`, and a sentence with what was found and how to mend it."""

    kind: str
    sentence: str


def check_kinds(kinds: Iterable[str], where: str) -> None:
    """Refuse unknown kinds.

    Raises:
        UserError: one is not in `DOUBTS`.
    """
    for kind in kinds:
        if kind not in DOUBTS:
            raise UserError(
                f'{where}: no doubt is called "{kind}".{did_you_mean(kind, DOUBTS)} Known: {", ".join(DOUBTS)}'
            )


def doubts(layout: Layout, surveys: Surveys | None = None, seen: Seen | None = None) -> list[Doubt]:
    """What looks wrong in a dataset, the gravest first. One that was accepted, or follows from another, is left out.

    Args:
        layout: of which classes and rule are known.
        surveys: of the masks of each split; by default of the sample by which the classes were found.
        seen: how the images look, where all of them were read.
    """
    surveys = layout.surveys if surveys is None else surveys
    whole = total(surveys)
    if not whole.masks:
        return []
    # Only the training split matters for learning; masks of a test split are often empty.
    assert layout.labels is not None
    assert layout.rule is not None
    look = _Look(layout, layout.labels, layout.rule, whole, surveys.get("train") or whole, surveys.get("val"), seen)
    found: list[Doubt] = []
    for kind, (examine, hidden_by) in DOUBTS.items():
        if not any(doubt.kind in hidden_by for doubt in found):
            found += [Doubt(kind, f"{sentence} [{kind}]") for sentence in examine(look)]
    return [doubt for doubt in found if doubt.kind not in layout.wishes.accept]


def stop_at_doubts(layout: Layout, accept: Iterable[str] = ()) -> None:
    """Refuse data whose meaning is in doubt.

    Args:
        accept: kinds of doubts that are accepted, beside those that the data accept.
    Raises:
        UserError: there is a doubt, or an unknown kind.
    """
    accept = tuple(accept)
    check_kinds(accept, "data.accept")
    left = [doubt for doubt in doubts(layout) if doubt.kind not in accept]
    if left:
        more = f" ({len(left) - 1} more: degrid data check)" if len(left) > 1 else ""
        raise UserError(
            f"{layout.root}: {left[0].sentence}: if it is intended, accept it with {how_to_accept(left[0].kind)}{more}"
        )


def how_to_accept(kind: str) -> str:
    """Where the user says that the cause of a kind of doubt is intended."""
    return f"data.accept={kind}, or accept: [{kind}] in dataset.yaml"


class _Look(NamedTuple):
    """What is examined: the layout, its classes and rule, the values in all masks, in those to train on and in those to
    validate with, and how the images look."""

    layout: Layout
    labels: LabelSpace
    rule: MaskRule
    whole: Survey
    learnt: Survey
    validated: Survey | None
    seen: Seen | None


# A value is solid where many of its pixels lie inside an area of that value, and soft where almost none does and many
# lie between a lower and a higher neighbour.
_SOLID, _BETWEEN = 0.2, 0.4
_LEAST_SOFT, _LEAST_SOFT_OF_NAMED = 3, 8
# With names, fewer soft values are enough if there are hardly any others.
_MOSTLY_SOFT = 0.5
_MOST_SOFT_PIXELS = 0.5
# Pixels between a lower and a higher neighbour: the fewest in all, for each step from one id to another, and for each
# step of more than 1 without them. In CamVid there are 0.01 for each of both; when it is made smaller or larger
# with smoothing, 0.1 and 1 or more, with any number of classes.
_LEAST_RAMPS, _RAMPS_TO_STEPS, _RAMPS_TO_FAR = 30, 0.06, 0.8
# The largest share of steps between far values where a thin line parts them everywhere.
_RARELY = 0.01
_MOSTLY = 0.8
# Without names, this many values, the highest at least this, are shades; no benchmark has an id above 182 beside void.
_SHADES, _HIGHEST_ID = 16, 190
# In masks most pixels have four neighbours of their own value: 0.85 of CamVid's. In pictures hardly any does.
_MOSTLY_ALIKE = 0.2
_NEARLY = 0.95
# In COCO itself one annotation in eighty is a crowd.
_MOST_CROWDS = 0.25
# Of a benchmark with at most so many classes, so many masks hold more than half of them.
_MOST_CLASSES, _SOME_MASKS = 40, 10
# Maps of each split whose places are compared.
_MAPS = 100
# Values this close to the lowest and the highest are noise on black and white; a few values are more likely classes.
_NEAR, _FEW = 24, 4


def _grey_edges(look: _Look) -> Iterator[str]:
    """Values that occur only along the edges between two others: masks that were smoothed or scaled."""
    layout, rule, found = look.layout, look.rule, look.whole
    if rule.threshold is not None or rule.nearest is not None:
        return
    solid, soft = _solid_and_soft(found)
    # Ids between those of two classes may be classes that are thin.
    named = not layout.guessed and all(value in rule.ids for value in soft)
    pixels = sum(found.examined[value] for value in soft)
    named = named and len(soft) < _MOSTLY_SOFT * len(found.ids)
    few = len(soft) < (_LEAST_SOFT_OF_NAMED if named else _LEAST_SOFT)
    if few or pixels > _MOST_SOFT_PIXELS * found.examined.total():
        yield from _edges_of_few(look, solid)
        return
    low, high = solid[0], solid[-1]
    text = (
        f"{found.first_of(soft[0])}{' and others' * (found.masks > 1)}: soft edges, {len(soft)} values "
        f"({some(soft, 3)}) that come only where {low} meets {high}"
    )
    ends = found.examined[low] + found.examined[high]
    two = len(solid) == 2 or ends > _MOSTLY * found.examined.total()
    if two and (layout.guessed or len(look.labels) <= 2):
        wish = _write(layout, f"threshold: {(low + high + 1) // 2}")
        yield f"{text}; {wish} to divide them into background and object"
    else:
        yield f"{text}, as if the masks had been scaled or smoothed; make them again without that (nearest neighbour)"


def _edges_of_few(look: _Look, solid: list[int]) -> Iterator[str]:
    """Other signs that masks were smoothed, if soft values are few."""
    said = [*_shades(look), *_ramps(look.whole, solid)]
    yield from said
    if not said and look.layout.guessed and (line := thin_line(look.whole)):
        yield f"soft edges: {line}, or name the classes in classes.txt if it is a class of its own"


def _shades(look: _Look) -> Iterator[str]:
    """More values than ids would have: thin objects with soft edges, maps of heat or depth, pictures."""
    values = sorted(value for value in look.whole.ids if value != IGNORE_INDEX)
    if not look.layout.guessed or len(values) < _SHADES:
        return
    examined = look.whole.examined.total()
    if look.whole.inside.total() < _MOSTLY_ALIKE * examined:
        yield (
            f"{look.whole.first_of(values[-1])}: {len(values)} values, with hardly any equal neighbours, look "
            "like a photograph, not a mask; give the folder of the masks, or list images before masks"
        )
    elif values[-1] >= _HIGHEST_ID:
        yield (
            f"{look.whole.first_of(values[-1])}: {len(values)} values up to {values[-1]} look like shades of grey; "
            f"{_write(look.layout, 'threshold: 128')} if they are background and object, or name all classes in "
            "classes.txt"
        )


def _ramps(found: Survey, solid: list[int]) -> Iterator[str]:
    """Ids of classes that fill areas, and occur again between others: where 0 meets 2 there is a line of 1."""
    ramps = sum(found.in_row[value] for value in solid)
    if ramps >= max(_LEAST_RAMPS, _RAMPS_TO_STEPS * found.steps, _RAMPS_TO_FAR * found.far):
        between = max(solid, key=found.in_row.__getitem__)
        yield (
            f"soft edges: where two classes meet, ids between theirs come as thin lines ({ramps} times in what was "
            f"looked at, {between} most often; such classes meet directly {found.far} times), as if the masks had been "
            "scaled or smoothed; make them again without (nearest neighbour)"
        )


def thin_line(found: Survey) -> str:
    """A sentence on ids that occur only where two others would meet, which never do; empty where there are none."""
    solid, _ = _solid_and_soft(found)
    lines = [
        value
        for value, pixels in sorted(found.examined.items())
        if len(solid) > 1
        and solid[0] < value < solid[-1]
        and value not in solid
        and found.between[value] >= _BETWEEN * pixels > 0
    ]
    if not lines or found.steps < _LEAST_RAMPS or found.far > _RARELY * found.steps:
        return ""
    return (
        f"id {some(lines, 3)} comes as a line of one pixel between {solid[0]} and {solid[-1]}, which meet nowhere "
        "else, as if the masks had been scaled or smoothed; make them again without that (nearest neighbour)"
    )


def _many_crowds(look: _Look) -> Iterator[str]:
    """Annotations marked as crowds, which are void, although several tools mark every brush mask this way."""
    if sentence := many_crowds(look.layout):
        yield sentence


def many_crowds(layout: Layout) -> str:
    """A sentence on data whose annotations are crowds more often than in COCO, if nothing says what they are."""
    crowds, drawn, classes = layout.crowds or Crowds(0, 0)
    if layout.wishes.crowd or (crowds <= _MOST_CROWDS * drawn and not classes):
        return ""
    of_classes = f", all of {some(classes)} among them" if classes else ""
    return (
        f"{layout.reason} calls {crowds:,} of {drawn:,} annotations crowds (iscrowd 1), which are void{of_classes}: "
        f"several tools mark all brush masks this way; {_write(layout, 'crowd: instance')} if they are objects, or "
        "crowd: void"
    )


def _solid_and_soft(found: Survey) -> tuple[list[int], list[int]]:
    """The values that fill areas, and those between them that occur only along edges, both sorted."""
    share = {value: found.inside[value] / pixels for value, pixels in found.examined.items() if pixels}
    solid = sorted(value for value, inside in share.items() if inside >= _SOLID)
    if len(solid) < 2:
        return solid, []
    soft = [
        value
        for value, inside in share.items()
        if inside < SOFT and solid[0] < value < solid[-1] and found.between[value] >= _BETWEEN * found.examined[value]
    ]
    return solid, sorted(soft)


def _sparse_ids(look: _Look) -> Iterator[str]:
    """Numbers that leave most classes empty: brightness, or ids of another list."""
    layout, found = look.layout, look.whole
    yield from _few_of_a_benchmark(look)
    values = sorted(value for value in found.ids if value not in (IGNORE_INDEX, *layout.wishes.void))
    if not layout.guessed or not values or 2 * len(values) >= values[-1] + 1:
        return
    classes = values[-1] + 1
    listed = [*values, *([IGNORE_INDEX] if IGNORE_INDEX in found.ids else [])]
    text = (
        f"masks hold the values {some(listed, 12)}, which would be {classes} classes, {classes - len(values)} of them "
        "empty"
    )
    low, high = listed[0], listed[-1]
    two = high - low > 4 * _NEAR and all(min(value - low, high - value) <= _NEAR for value in listed)
    centres = _centres(found, listed)
    if two and len(listed) > _FEW:
        wish = _write(layout, f"threshold: {(low + high + 1) // 2}")
        yield f"{text}; {wish} to divide them into background and object"
    elif 1 < len(centres) <= len(listed) // 3:
        wish = _write(layout, f"ids: {centres}")
        yield f'{text}; {wish} and "nearest_color: {_NEAR}" if others are noise around these'
    elif len(listed) <= 20:
        void = ", and leave out 255 if it is void" if IGNORE_INDEX in listed else ""
        yield f"{text}; {_write(layout, f'ids: {listed}')}{void}, or name all classes in classes.txt"
    else:
        yield f"{text}; name the classes in classes.txt, or give ids: {{value: class}} in dataset.yaml"


def _few_of_a_benchmark(look: _Look) -> Iterator[str]:
    """Few of the classes of a benchmark, in whose layout people store data of their own."""
    found, names = look.whole, look.labels.names
    counts, _ = found.by_class(look.rule)
    present = [names[train] for train in sorted(counts) if train != IGNORE_INDEX and counts[train]]
    few = 0 < 2 * len(present) < len(names) <= _MOST_CLASSES
    if look.rule.assumed and few and found.masks >= _SOME_MASKS and not found.colored:
        yield (
            f"the data lie as those of {look.layout.kind} and so have its {len(names)} classes, but {found.masks} "
            f"masks hold {len(present)} of them only ({some(present, 4)}): if they are classes of your own, name these "
            "in classes.txt"
        )


def _instances(look: _Look) -> Iterator[str]:
    """Ids that number the objects of each image, so that they mean something else in each."""
    if look.layout.guessed and look.whole.numbers_objects:
        most = max(look.whole.up_to)
        yield (
            f"the masks seem to number their objects: all hold ids from 1 up without gaps, some up to "
            f"{min(look.whole.up_to)}, {look.whole.first_of(most)} up to {most}; "
            f"{_write(look.layout, 'threshold: 1')} to make one class of them, or name the classes in classes.txt"
        )


def _centres(found: Survey, values: list[int]) -> list[int]:
    """The commonest value of each group of values that follow each other closely."""
    groups: list[list[int]] = []
    for value in values:
        if groups and value - groups[-1][0] <= _NEAR:
            groups[-1].append(value)
        else:
            groups.append([value])
    return [max(group, key=found.ids.__getitem__) for group in groups]


def _palettes_differ(look: _Look) -> Iterator[str]:
    """One id in several colours that occur again: in several masks, or for other ids. Random colours do neither."""
    layout, found = look.layout, look.whole
    if layout.wishes.palette or look.rule.exact:
        return
    colors: dict[int, list[Color]] = {}
    ids: dict[Color, list[int]] = {}
    for value, color in sorted(found.shown, key=lambda shown: -found.shown[shown]):
        colors.setdefault(value, []).append(color)
        ids.setdefault(color, []).append(value)
    for value, shown in colors.items():
        again = sum(found.shown_in[value, color] > 1 for color in shown)
        if len(shown) > 1 and (again > 1 or any(len(ids[color]) > 1 for color in shown)):
            yield (
                f"the palettes of the masks differ: id {value} is {shown[0]} in some and {shown[1]} in others; "
                f"{_write(layout, 'palette: color')} and give the classes their colours, or palette: index if the ids "
                "count"
            )
            return


def _palette_order(look: _Look) -> Iterator[str]:
    """Ids shown in the colour of another class."""
    layout, labels, rule = look.layout, look.labels, look.rule
    if layout.wishes.palette or rule.default_colors or rule.exact:
        return
    for value, color in look.whole.shown:
        index, meant, blurred = rule.ids.get(value), rule.colors.get(color), ""
        if meant is None:
            meant, blurred = rule.nearly(color), ' and "nearest_color: 30"'
        if index is not None and meant is not None and index != meant:
            names = [*labels.names, *["void"] * (IGNORE_INDEX + 1)]
            yield (
                f"the palettes of the masks show id {value} in {color}, the colour of {_named(names, meant)}, but "
                f"{value} is {_named(names, index)} in {rule.said or 'the table'}; {_write(layout, 'palette: color')}"
                f"{blurred}, or palette: index"
            )
            return


def _named(names: list[str], index: int) -> str:
    return "void" if index == IGNORE_INDEX else names[index]


# Names of things that are not objects.
_NO_OBJECT = re.compile(
    r"(no|not|non)[-_ ]|(others?|rest|else|none|nothing|empty|negative|clutter|backgr.*)$", re.IGNORECASE
)


def _table_contradicted(look: _Look) -> Iterator[str]:
    """Masks whose 0 is a class, as the table's order has it, that calls another class background."""
    layout, labels, rule = look.layout, look.labels, look.rule
    if rule.exact:
        return
    if set(look.whole.ids) != {0, IGNORE_INDEX}:
        if rule.in_order:
            yield from _void_counted(look)
        if rule.in_order and rule.default_colors:
            yield from _order_contradicted(look)
            yield from _last_is_white(look)
        return
    if rule.says_void or len(labels) != 2:
        return
    black, white = rule.ids.get(0), rule.ids.get(IGNORE_INDEX)
    first, second = labels.names
    if (black, white) == (0, 1) and _is_no_object(second):
        yield (
            f"{rule.said} calls class 1 {second}, but in black and white masks 0 (black) is normally the background; "
            f"{_write(layout, 'ids: [255, 0]')} if black is {second}, or ids: [0, 255] if it is {first}"
        )


def _order_contradicted(look: _Look) -> Iterator[str]:
    """Names without ids among which background is not the first, though 0 looks like it."""
    names, found, rule = look.labels.names, look.whole.ids, look.rule
    if {*found} - {IGNORE_INDEX} == {*range(1, len(names))} and len(names) > 2:
        first, last = ", ".join(map(str, range(1, min(len(names), 12) + 1))), len(names)
        more = f", .., {last}" if last > 12 else ""
        yield (
            f"{rule.said} calls 0 {names[0]}, but no mask holds 0, and all from 1 to {last - 1} come: "
            f"{_write(look.layout, f'ids: [{first}{more}]')} if the masks count from 1, or ids: [0, 1, ..] if they "
            "count from 0"
        )
        return
    if is_background(names[0]) or 0 not in found:
        return
    is_other = is_background
    if len(names) == 2:
        is_other = _is_no_object
    elif found[0] < max(pixels for value, pixels in found.items() if value != IGNORE_INDEX):
        return
    for place in range(1, len(names)):
        if is_other(names[place]):
            as_usual = [0 if index == place else index + (index < place) for index in range(len(names))]
            yield (
                f"{rule.said} calls class {place} {names[place]}, but 0 is normally the background: "
                f"{_write(look.layout, f'ids: {as_usual}')} if 0 is {names[place]}, or ids: {[*range(len(names))]} if "
                f"it is {names[0]}"
            )
            return


def _void_counted(look: _Look) -> Iterator[str]:
    """Names without ids, one of which is void and counts as a row, where the masks seem to number the others alone."""
    names, found, rule = look.labels.names, look.whole.ids, look.rule
    ids = sorted(value for value, train in rule.ids.items() if train != IGNORE_INDEX)
    void = [value for value, train in rule.ids.items() if train == IGNORE_INDEX and value < ids[-1]]
    if void and len(ids) == len(names) and {void[0], IGNORE_INDEX} <= {*found} and ids[-1] not in found:
        alone = _write(look.layout, f"ids: {[*range(len(names))]}")
        yield (
            f"{rule.said} lists what is void in row {void[0]}, so {void[0]} is void and {ids[-1]} is {names[-1]}; "
            f"but masks hold 255, too, which normally means void, and none holds {ids[-1]}: {alone} if they number the "
            f"other classes alone, or ids: {ids}"
        )


def _last_is_white(look: _Look) -> Iterator[str]:
    """As many values as names, the last of which is 255 and not the last id."""
    names = look.labels.names
    held = {*look.whole.ids} == {*range(len(names) - 1), IGNORE_INDEX}
    if held and len(names) > 2 and IGNORE_INDEX not in look.layout.wishes.void:
        ids = [*range(len(names) - 1), IGNORE_INDEX]
        yield (
            f"{look.rule.said} names {len(names)} classes, and the masks hold as many values: 0 to {len(names) - 2}, "
            f"and 255, which normally means void, but none of {names[-1]}; {_write(look.layout, f'ids: {ids}')} if 255 "
            f'is {names[-1]}, or "void: [255]"'
        )


def _is_no_object(name: str) -> bool:
    return is_background(name) or bool(_NO_OBJECT.match(name))


def _values_mixed(look: _Look) -> Iterator[str]:
    """Masks whose values do not mean the same."""
    yield from _two_kinds_of_white(look)
    yield from _values_mixed_by_darwin(look)


def _two_kinds_of_white(look: _Look) -> Iterator[str]:
    """Masks of 0 and 255 among masks of other ids without 255, which would be void."""
    layout, found, rule = look.layout, look.whole, look.rule
    said = rule.exact or rule.says_void or not (layout.guessed or rule.said) or IGNORE_INDEX in layout.wishes.void
    whites = found.sets[0, IGNORE_INDEX] + found.sets[(IGNORE_INDEX,)]
    alone = whites == found.found_in[IGNORE_INDEX] + found.found_in[(IGNORE_INDEX,) * 3]
    others = found.masks - whites - found.sets[(0,)]
    if said or found.colored or rule.ids.get(IGNORE_INDEX) != IGNORE_INDEX or not (alone and others):
        return
    if found.sets[0, IGNORE_INDEX]:
        one = {*found.ids} == {0, 1, IGNORE_INDEX}
        mend = _write(layout, "threshold: 1") if one else "make them again with the ids of the others"
        held, here, both = ("0 and 1", "0 and 255", "1 and 255") if one else ("other ids", "0 and 255 alone", "both")
        yield (
            f"{others} masks hold {held}, {whites} hold {here}, and none holds {both}, so that 255 is void in these: "
            f'{mend} if it means an object, or write "void: [255]"'
        )


def _values_mixed_by_darwin(look: _Look) -> Iterator[str]:
    """Darwin's grey masks of 17 classes and more; see findings/darwin_grey_masks.sh.

    It replaces values one after the other in the same array, so that a value that is also a later id is replaced again.
    """
    number = len(look.labels)
    grey = [index * 255 // max(1, number - 1) for index in range(number)]
    if look.rule.said != "class_mapping.csv" or look.rule.ids != {value: index for index, value in enumerate(grey)}:
        return
    lost = [index for index in range(1, number) if index < grey[index] < number]
    if lost and not any(grey[index] in look.whole.ids for index in lost):
        first = taken = lost[0]
        for index in range(number):
            taken = grey[index] if taken == index else taken
        names = look.labels.names
        yield (
            f"{look.rule.said} gives {names[first]} the value {grey[first]}, which no mask has; darwin-py up to 3.6.3 "
            f"writes {taken} instead, the value of {names[grey.index(taken)]}; export ids or colours"
        )


def _several_masks(look: _Look) -> Iterator[str]:
    """Images with further masks, such as one for each object, of which the first is read."""
    read = {}
    for sources in look.layout.splits.values():
        for source in () if isinstance(sources, LazySources) or not look.layout.orphans else sources:
            image, mask = map(Path, source.places())
            read[mask.parent, without_number(mask.stem)] = (image, mask)
    for orphan in look.layout.orphans:
        image, mask = read.get((orphan.parent, without_number(orphan.stem)), (orphan, orphan))
        if mask.stem != orphan.stem:
            yield (
                f"{image.name} has several masks ({mask}, {orphan.name}), of which the first is read: join those of an "
                "image into one, such as np.maximum(first, second)"
            )
            return


def _numbers_shifted(look: _Look) -> Iterator[str]:
    """Images and masks numbered from other numbers on, of which equal ones are paired."""
    known = [split for split in look.layout.splits.values() if not isinstance(split, LazySources)]
    sources = list(itertools.chain.from_iterable(known)) if look.layout.orphans else []
    masks = [str(file) for file in look.layout.orphans]
    masks += [source.places()[1] for source in sources if source.missing() != "label"]
    if not masks or len(masks) != len(sources):
        return
    ours, theirs = sorted(_last_number(each.places()[0]) for each in sources), sorted(map(_last_number, masks))
    apart = [one - other for one, other in zip(ours, theirs, strict=True)]
    if min(ours[0], theirs[0]) >= 0 and 0 < abs(apart[0]) < len(ours) and {*apart} == {apart[0]}:
        yield (
            f"images are numbered {ours[0]} to {ours[-1]}, and as many masks {theirs[0]} to {theirs[-1]}, so that "
            "equal numbers may not belong together: if the first mask is that of the first image, number them alike"
        )


def _last_number(file: str) -> int:
    """The last number in a file's name; -1 where there is none."""
    return int([-1, *re.findall(r"\d+", Path(file).stem)][-1])


def _other_places(look: _Look) -> Iterator[str]:
    """Maps whose masks cover another place."""
    for sources in look.layout.splits.values():
        for source in () if isinstance(sources, LazySources) else sources[:_MAPS]:
            image, mask = source.places()
            if not (is_tiff(image) and is_tiff(mask)):
                break
            if sentence := _apart(image, mask):
                yield sentence
                return


def _apart(image: str, mask: str) -> str:
    """A sentence on an image and a mask that cover different places; empty if they cover the same."""
    headers = [header for header in map(tiff_header, (image, mask)) if header]
    systems = [header.system for header in headers if header.system]
    if len({*map(_zone, systems)}) > 1:
        return (
            f"{image} and its mask {mask} are in other coordinate systems (EPSG:{systems[0]} and EPSG:{systems[1]}), "
            "in which the same numbers are other places: warp one to that of the other (gdalwarp -t_srs), or correct "
            "what is said wrongly"
        )
    ours, theirs = [header.corners for header in headers] if len(headers) > 1 else (None, None)
    if ours and theirs and any(abs(one - other) > _off(ours) for one, other in zip(ours, theirs, strict=True)):
        return (
            f"{image} and its mask {mask} are of different places on the map: {_shown(ours)} and {_shown(theirs)} (x "
            "and y of the first and of the last corner); cut them along the same lines"
        )
    return ""


def _zone(system: int) -> int:
    """An EPSG code, or WGS 84's for ETRS89 and NAD83 in degrees or UTM, in which places differ by a metre or two."""
    if 25828 <= system <= 25838 or 26901 <= system <= 26923:
        return 32600 + system % 100
    return 4326 if system in (4258, 4269) else system


def _off(corners: tuple[float, ...]) -> float:
    """How far apart the same corner may be in both: a hundredth of the map's width."""
    return abs(corners[2] - corners[0]) / 100


def _shown(corners: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.10g}" for value in corners)


def _splits_overlap(look: _Look) -> Iterator[str]:
    """Images that are both in training and in validation or test."""
    mend = "take them out of one of the two"
    if any("kept for validation" in note for note in look.layout.notes):
        mend = "remove the copies, or name the splits in train.txt and val.txt"
    for found in overlaps(look.layout, look.seen):
        how = f", {found.changed}" if found.changed else ""
        copy = f" (a copy of {found.same_as}{how})" if found.same_as != found.first else ""
        are = "is" if found.both == 1 else "are"
        yield (
            f"{found.both} of {found.images} images of {found.split} {are} in train, too, such as {found.first}{copy}, "
            f"so its scores would be too good; {mend}"
        )


def _splits_unread(look: _Look) -> Iterator[str]:
    """Files that seem to say what is for training and what is not, beside images that were divided by chance."""
    for note in look.layout.notes:
        files = note.partition(UNREAD_SPLITS)[0].rpartition("; ")[2] if UNREAD_SPLITS in note else ""
        words = {*re.findall(r"split|fold|partition|train|val|test", files.lower())}
        if words - {"train", "val", "test"} or len(words) > 1:
            yield f"the images are split at random, though {files}seems to name the splits and {UNREAD_SPLITS}"


def _names_alike(look: _Look) -> Iterator[str]:
    """Classes that differ only in capitals, spaces or hyphens, as typed labels do."""
    names: dict[str, str] = {}
    for name in () if look.layout.guessed else look.labels.names:
        first = names.setdefault(" ".join(re.split(r"[-_\s]+", name.casefold().strip(" -_"))), name)
        if first != name:
            yield f'there are the classes "{first}" and "{name}": if they are the same, give them one name everywhere'
            return


def _images_are_masks(look: _Look) -> Iterator[str]:
    """Images that show the answer."""
    sources = look.layout.splits.get("train", [])
    image = "" if isinstance(sources, LazySources) else copied_masks(sources)
    if image:
        yield f"{image} is the same file as its mask, and so are the others that were looked at: where are the images?"


def _nearly_void(look: _Look) -> Iterator[str]:
    """Hardly any pixel has a class."""
    counts, _ = look.learnt.by_class(look.rule)
    share = counts[IGNORE_INDEX] / max(1, counts.total())
    if share > _NEARLY:
        common = [value for value, _ in look.learnt.pixels.most_common(4)]
        yield (
            f"{100 * share:.1f} % of the pixels are void, so there is hardly anything to learn; the most common "
            f"values are {some(common)}, the classes {some(look.labels.names, 4)}: if these are not your classes, "
            "name yours in classes.csv, or map ids in dataset.yaml"
        )


def _one_class(look: _Look) -> Iterator[str]:
    """Only one class to predict."""
    labels = look.labels
    counts, unknown = look.learnt.by_class(look.rule)
    present = [index for index in counts if index != IGNORE_INDEX]
    if unknown or len(present) > 1 or (not present and len(labels) > 1):
        yield from _one_class_in_val(look)
        return
    values = some(sorted(look.learnt.ids), 6)
    if len(labels) == 1:
        yield (
            f'there is one class, "{labels.names[0]}", and nothing to distinguish it from (the masks hold the values '
            f"{values}); name the background, too"
        )
        return
    held = f'all masks are "{labels.names[present[0]]}" and no other class: they hold the values {values}'
    if counts[IGNORE_INDEX] and IGNORE_INDEX in look.learnt.ids:
        first = min(look.learnt.ids)
        mend = _write(look.layout, f"ids: [{first}, 255]") if len(labels) == 2 or look.layout.guessed else "list its id"
        yield f"{held}, where 255 is void; {mend} if it is a class"
    else:
        yield f"{held}; are these the right masks?"


def _one_class_in_val(look: _Look) -> Iterator[str]:
    """A named validation split, seen completely, with a single class: as if its labels were lost."""
    found = look.validated
    if found is None or not 1 < found.masks == len(look.layout.splits["val"]) or by_chance(look.layout.notes):
        return
    counts, unknown = found.by_class(look.rule)
    present = [index for index in counts if index != IGNORE_INDEX]
    if len(present) == 1 and not unknown:
        yield (
            f'all of val is "{look.labels.names[present[0]]}" and no other class, so that its scores mean nothing: '
            "were its labels exported, too?"
        )


def _write(layout: Layout, line: str) -> str:
    """How to say something in dataset.yaml."""
    if layout.wishes.file:
        return f'write "{line}" in {layout.wishes.file}'
    if layout.kind == "Hugging Face" and not layout.root.is_dir():
        return f'write "path: hf:{layout.root.as_posix()}" and "{line}" in a file dataset.yaml, and give that'
    return f'write "{line}" in {layout.root}/dataset.yaml'


DOUBTS: dict[str, tuple[Callable[[_Look], Iterator[str]], tuple[str, ...]]] = {
    "many-crowds": (_many_crowds, ()),
    "grey-edges": (_grey_edges, ()),
    "sparse-ids": (_sparse_ids, ("grey-edges",)),
    "instances": (_instances, ("grey-edges",)),
    "palettes-differ": (_palettes_differ, ()),
    "palette-order": (_palette_order, ("palettes-differ",)),
    "table-contradicted": (_table_contradicted, ()),
    "values-mixed": (_values_mixed, ()),
    "several-masks": (_several_masks, ()),
    "numbers-shifted": (_numbers_shifted, ()),
    "other-places": (_other_places, ()),
    "splits-overlap": (_splits_overlap, ()),
    "splits-unread": (_splits_unread, ()),
    "names-alike": (_names_alike, ()),
    "images-are-masks": (_images_are_masks, ()),
    "nearly-void": (_nearly_void, ("many-crowds", "grey-edges", "sparse-ids")),
    "one-class": (_one_class, ("many-crowds", "grey-edges", "sparse-ids", "nearly-void")),
}
"""How each kind of doubt is examined, and the kinds that it would only repeat; the most serious first."""
