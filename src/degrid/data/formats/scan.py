"""What the values in a dataset's masks mean: the user's classes, or else those inferred from the masks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from degrid.data.formats.classes import unread_tables
from degrid.data.formats.doubts import thin_line
from degrid.data.formats.layout import Layout
from degrid.data.formats.masks import Color, MaskReading, MaskRule, in_one_channel
from degrid.data.formats.pairs import Pair, splits_or_divided
from degrid.data.formats.source import LazySources, Source
from degrid.data.formats.survey import MANY_MASKS, SOME_MASKS, ReadValues, labelled, read_values, survey_masks
from degrid.data.formats.tools.label_files import is_background
from degrid.data.formats.unread import cutout_sentence
from degrid.data.formats.values import MANY_OBJECTS, Survey, Surveys, total
from degrid.lookup import counted, some
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

# Classes of a scene, such as its ground, are in more than this share of masks.
_MOST_MASKS = 0.75
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_OBJECT = (255, 64, 64)
BINARY_LABELS = LabelSpace(("background", "foreground"), (BLACK, _OBJECT))
"""The classes of black and white masks."""
_BINARY = MaskRule({0: 0, IGNORE_INDEX: 1}, {BLACK: 0, WHITE: 1})


def resolve_classes(layout: Layout, read: ReadValues = read_values) -> Layout:
    """Fill in the classes and how masks are read, by looking at the masks; notes say what was decided.

    What the user says wins. Masks with nothing but 0 and 255 are black and white pictures of two classes; otherwise
    255 is void unless something says what it means.

    Args:
        read: reads the masks of the sample.
    Raises:
        UserError: the masks are colour pictures or have ids above 255, and nothing says what they mean; or the user
            asks for something that does not fit the classes.
    """
    read_crowds(layout)
    if not any(isinstance(sources, LazySources) for sources in layout.splits.values()):
        layout.splits, notes = splits_or_divided(layout.splits)
        layout.notes += notes
    layout.notes += [*_said_of_orphans(layout), *_said_of_shared(layout)]
    layout.surveys = _look(layout, read)
    whole = total(layout.surveys)
    layout.notes += _said_of_rule(layout.rule, whole)
    if layout.wishes.threshold is not None:
        _set_threshold(layout)
    elif layout.wishes.ids:
        _set_ids(layout)
    elif layout.labels is None:
        _guess(layout, whole)
    else:
        layout.rule = layout.rule or MaskRule.plain(layout.labels)
        if not (layout.rule.exact or layout.rule.says_void or IGNORE_INDEX in layout.wishes.void):
            _fit_to_masks(layout, whole)
    layout.rule = _with_wishes(layout)
    _say_void(layout, whole)
    layout.notes += _assumed(layout, whole)
    if _grey_ids(layout.rule, whole):
        layout.rule = dataclasses.replace(layout.rule, colors={})
    return layout


def _said_of_orphans(layout: Layout) -> list[str]:
    """A sentence on the masks without an image; none where there are none."""
    masks = [str(mask) for mask in layout.orphans]
    return [f"{counted(len(masks), 'mask')} without an image, from which nothing is learned: {some(masks, 3)}"] * bool(
        masks
    )


def _said_of_shared(layout: Layout) -> list[str]:
    """A sentence on masks that several images have, as by a slip in a list; none where there are none."""
    images: dict[Path, set[Path]] = {}
    for sources in layout.splits.values():
        for source in () if isinstance(sources, LazySources) else sources:
            if type(source) is Pair and source.mask:  # other kinds have one file for many images
                images.setdefault(source.mask, set()).add(source.image)
    shared = [mask for mask, its in images.items() if len(its) > 1]
    if not shared:
        return []
    both = some(sorted(image.name for image in images[shared[0]]), 3)
    return [f"{counted(len(shared), 'mask', 'belong')} to several images each: {shared[0]} to {both}"]


def _said_of_rule(rule: MaskRule | None, found: Survey) -> list[str]:
    """Notes on how the table of classes was read; renumbering matters only for masks of ids."""
    if rule is None:
        return []
    of_ids = rule.renumbered and any(isinstance(value, int) for value in found.pixels)
    return [*rule.notes, *([rule.renumbered] if of_ids else [])]


def read_crowds(layout: Layout) -> None:
    """Let what COCO's annotations call crowds be what the user says.

    Raises:
        UserError: something is said about crowds, and the data cannot hold any.
    """
    wishes = layout.wishes
    if wishes.crowd and layout.crowds is None:
        raise UserError(
            f"{wishes.file}: crowd says what the crowds in COCO's annotations are, but {layout.root} was read as "
            f"{layout.kind or layout.reason}, which has none: leave out crowd"
        )
    if wishes.crowd == "instance":
        layout.splits = _read_otherwise(layout, MaskReading(crowds=True))


def _look(layout: Layout, read: ReadValues) -> Surveys:
    """Decide how mask files are read, and survey them."""
    wishes = layout.wishes
    lossy = wishes.threshold is not None or wishes.nearest is not None
    if lossy or wishes.palette == "color":
        crowds = wishes.crowd == "instance"
        how = MaskReading(wishes.palette == "color", lossy, crowds, wishes.threshold)
        layout.splits = _read_otherwise(layout, how)
    surveys = _survey(layout, read)
    if wishes.palette or not _says_palettes(layout, surveys):
        return surveys
    layout.splits = _read_otherwise(layout, MaskReading(True, lossy))
    plain = {color for _, color in total(surveys).shown} == {BLACK, WHITE}
    what = "black and white" if plain else "the colours of the classes"
    layout.notes.append(f"the palettes of the masks show {what}: they are read by colour")
    return _survey(layout, read)


def _read_otherwise(layout: Layout, how: MaskReading) -> dict[str, list[Source] | LazySources]:
    def lazily(sources: LazySources) -> LazySources:
        return LazySources(lambda: [source.reading(how) for source in sources])

    return {
        split: lazily(sources) if isinstance(sources, LazySources) else [source.reading(how) for source in sources]
        for split, sources in layout.splits.items()
    }


def _survey(layout: Layout, read: ReadValues) -> Surveys:
    """A sample of the masks; a larger one where it decides more than usual."""
    if layout.labels is None:
        return survey_masks(layout, MANY_MASKS, read)
    surveys = survey_masks(layout, SOME_MASKS, read)
    few = len({value for survey in surveys.values() for value in survey.pixels if value not in (IGNORE_INDEX, WHITE)})
    return survey_masks(layout, MANY_MASKS, read) if few < 2 else surveys


def _says_palettes(layout: Layout, surveys: Surveys) -> bool:
    """Whether the palettes show the classes' own colours, in another order than that of the ids."""
    rule, shown = layout.rule, total(surveys).shown
    if _names_no_colors(layout):  # black and white, with white first
        return {color for _, color in shown} == {BLACK, WHITE} and (0, WHITE) in shown
    if rule is None or rule.default_colors or not rule.colors or rule.exact:
        return False
    void = {color: IGNORE_INDEX for color in layout.wishes.void if isinstance(color, tuple)}
    colors = {**rule.colors, **void}
    meant = [(rule.ids.get(index), colors.get(color)) for index, color in shown]
    return all(by_color is not None for _, by_color in meant) and any(by_id != by_color for by_id, by_color in meant)


def _names_no_colors(layout: Layout) -> bool:
    """Whether nothing is known about the one or two classes except perhaps their names."""
    if layout.labels is None or layout.rule is None:
        return layout.labels is None
    return len(layout.labels) <= 2 and layout.rule.default_colors and not layout.rule.exact


def _grey_ids(rule: MaskRule, found: Survey) -> bool:
    """Whether pictures hold ids as grey. Seen in all of them, since black in one may be a class's colour, too."""
    greys = {value for value in found.pixels if isinstance(value, tuple)}
    if not greys or found.colored or rule.nearest is not None:
        return False
    unknown = any(grey not in rule.colors for grey in greys)
    return (unknown or rule.default_colors) and all(grey[0] in rule.ids for grey in greys)


# ---- nothing names the classes --------------------------------------------------------------------------------


def _guess(layout: Layout, found: Survey) -> None:
    colored = [color for color in found.colored if color not in layout.wishes.void]
    if colored:
        raise UserError(_colors_message(layout, found, colored))
    values = set(found.ids) - set(layout.wishes.void)
    if values == {0, IGNORE_INDEX}:
        layout.labels, layout.rule = BINARY_LABELS, _BINARY
        layout.notes.append("masks hold only 0 and 255: taken as background and foreground")
        return
    if values and (min(values) < 0 or max(values) > IGNORE_INDEX):
        raise UserError(_range_message(layout, found, sorted(values)))
    highest = max((value for value in values if value != IGNORE_INDEX), default=0)
    layout.labels, layout.guessed = LabelSpace.of_size(highest + 1), True
    layout.rule = MaskRule.plain(layout.labels, default_colors=True)
    where = f"{found.masks} of {counted(labelled(layout), 'mask')}"
    said = f"they are numbered 0 to {highest}, after the ids in {where}" if values else "no mask can be read"
    unread = unread_tables(layout.root)
    but = f"; {unread}" if unread else ""
    layout.notes.append(f"the data name no classes: {said}{but}")


_MOST_COLORS = 1000
_MOST_LISTED = 20
"""The most values that a message lists as those of classes; more would not be classes."""


def _range_message(layout: Layout, found: Survey, values: list[int]) -> str:
    place = next(found.first[value] for value in found.first if value in (values[0], values[-1]))
    mend, low = "map the ids in dataset.yaml", [value for value in values if value < 0]
    where = layout.wishes.file or layout.root / "dataset.yaml"
    if found.numbers_objects or _have_no_gaps(values):
        mend = f'write "threshold: 1" in {where} if they number objects, which makes one class of all'
    elif len(values) > _MOST_COLORS:
        mend = 'so many values are those of a picture, such as a depth map: "masks: FOLDER" in dataset.yaml says where '
        mend += "the masks are"
    elif not low and (base := _base_of_objects(values)):
        mend = (
            f"if they are the class times {base} and the number of the object, as in Cityscapes' instanceIds, save "
            f"np.where(ids < {base}, ids, ids // {base})"
        )
    elif not low and len(values) <= _MOST_LISTED:
        mend = f'write "ids: {values}" in {where} if these are the classes; those that are void belong in "void: [..]"'
    elif 0 < len(low) <= 4 and values[-1] <= IGNORE_INDEX:
        mend = f'write "void: {low}" in {where} if that means nothing'
    return f"{place} holds ids from {values[0]} to {values[-1]}; degrid has at most 255 classes, from 0 on: {mend}"


def _have_no_gaps(values: list[int]) -> bool:
    """Whether these are all numbers from 0 to the last."""
    return values[0] == 0 and len(values) == values[-1] + 1


def _base_of_objects(values: list[int]) -> int:
    """The number by which the class is multiplied in ids of classes and objects; 0 where they are no such ids."""
    for base in (1000, 256):
        above = [value for value in values if value >= base]
        classes = {value // base for value in above}
        if len(above) >= 2 * len(classes) and len(classes) > 1 and max(classes) < IGNORE_INDEX:
            return base
    return 0


def _colors_message(layout: Layout, found: Survey, colored: list[Color]) -> str:
    colors = [value for value, _ in found.pixels.most_common() if isinstance(value, tuple)]
    said = [cutout_sentence(Path(found.first[colored[0]]))]
    if len(colors) > _MOST_COLORS:
        said = ["So many are those of a picture: give the folder of the masks, and list images before masks"]
    beside = (note for note in layout.notes if note.startswith("the labels are those of "))
    if channel := in_one_channel(colors):
        said.append(channel[0].upper() + channel[1:])
    said += [f'{note}: "masks: FOLDER" in dataset.yaml chooses' for note in beside]
    if re.search(r"ADE_[a-z]+_\d+_seg\.png", str(found.first[colored[0]])):
        said = ["It is one of the full ADE20K: of its objects, red // 10 * 256 + green is the number of the class"]
    return ". ".join(
        [
            f"{found.first[colored[0]]} is a colour picture and nothing says which colour is which class (there are "
            f"{len(colors)}: {some(colors, 6)}); write {layout.root}/classes.csv with the columns id,name,r,g,b",
            *filter(None, [*said, unread_tables(layout.root)]),
        ]
    )


# ---- the classes are named ------------------------------------------------------------------------------------


def _fit_to_masks(layout: Layout, found: Survey) -> None:
    """Let a table of one or two classes fit masks that mark objects in white, or with 1, on a background."""
    labels, rule = layout.labels, layout.rule
    assert labels is not None
    assert rule is not None
    values = set(found.ids)
    if len(labels) == 1 and _marks_objects(labels, rule, found):
        white = 1 not in values and IGNORE_INDEX in values
        color = rule_color(labels)
        layout.labels = _with_background(labels)
        ids = {0: 0, IGNORE_INDEX: 1} if white else {0: 0, 1: 1, IGNORE_INDEX: IGNORE_INDEX}
        layout.rule = dataclasses.replace(rule, ids=ids, colors={**rule.colors, WHITE: 1, color: 1, BLACK: 0})
        said = rule.said or "the data"
        layout.notes.append(f'{said} names one class, "{labels.names[0]}": what is 0 (black) is taken as background')
    elif _are_two(rule, labels) and values == {0, IGNORE_INDEX} and not found.colored:
        layout.rule, note = _two_classes(labels, rule)
        layout.notes.append(f"masks hold only 0 and 255: {note}")
    elif _holds_grey_of_classes(rule, found):
        greys = {color[0]: index for color, index in rule.colors.items() if len(set(color)) == 1}
        layout.rule = dataclasses.replace(rule, ids={**rule.ids, **greys})
        layout.notes.append(f"masks hold the grey values that are the classes' colours in {rule.said or 'the table'}")


def _are_two(rule: MaskRule, labels: LabelSpace) -> bool:
    """Whether there are two classes, and no other ids than 0 and 1 are said to be theirs."""
    return len(labels) == 2 and {0, 1} <= rule.ids.keys()


def _holds_grey_of_classes(rule: MaskRule, found: Survey) -> bool:
    """Whether masks of one channel hold the brightness of the classes' colours, some of which is no id."""
    values = [value for value in found.pixels if isinstance(value, int)]
    grey = {color[0] for color in rule.colors if len(set(color)) == 1}
    unknown = any(value not in rule.ids or value == IGNORE_INDEX for value in values)
    return not rule.default_colors and unknown and len(grey) > 1 and {*values} <= grey


def _marks_objects(labels: LabelSpace, rule: MaskRule, found: Survey) -> bool:
    """Whether masks hold 0 (black) and one value that can stand for the only class."""
    values, colors = set(found.ids), set(found.colored)
    if is_background(labels.names[0]) or 0 not in values:
        return False
    if colors:
        return colors == {labels.colors[0]} and values <= {0, IGNORE_INDEX}
    own_black = labels.colors[0] == BLACK and not rule.default_colors
    return not own_black and values in ({0, 1}, {0, IGNORE_INDEX}, {0, 1, IGNORE_INDEX})


def rule_color(labels: LabelSpace) -> Color:
    """The colour of the only class, beside a black background."""
    return _OBJECT if labels.colors[0] == BLACK else labels.colors[0]


def _with_background(labels: LabelSpace) -> LabelSpace:
    return LabelSpace(("background", labels.names[0]), (BLACK, rule_color(labels)))


def _two_classes(labels: LabelSpace, rule: MaskRule) -> tuple[MaskRule, str]:
    """The rule for black and white masks of two named classes, and how that is said."""
    black, why = 0, ""
    if not rule.default_colors:
        # Only colours decide, if black or white is among them.
        of_black, of_white = rule.colors.get(BLACK), rule.colors.get(WHITE)
        said = of_black if of_black in (0, 1) else 1 - of_white if of_white in (0, 1) else 0
        black, why = (1, f", after the colours in {rule.said or 'the table'}") if said else (0, "")
    white = 1 - black
    new = dataclasses.replace(rule, ids={0: black, IGNORE_INDEX: white}, colors={BLACK: black, WHITE: white})
    if black == 0:
        return new, f"taken as background and foreground ({labels.names[0]} and {labels.names[1]})"
    return new, f"0 is {labels.names[black]} and 255 is {labels.names[white]}{why}"


def _say_void(layout: Layout, found: Survey) -> None:
    """Say that 255 is void, if only convention makes it so."""
    rule = layout.rule
    assert rule is not None
    said = rule.says_void or rule.exact or rule.threshold is not None or IGNORE_INDEX in layout.wishes.void
    asked = layout.guessed or bool(rule.said)  # in benchmarks it is known
    if found.found_in[IGNORE_INDEX] and rule.ids.get(IGNORE_INDEX) == IGNORE_INDEX and asked and not said:
        layout.notes.append(
            f"255 is void, as usual: {found.found_in[IGNORE_INDEX]} of {counted(found.masks, 'mask')} that were looked "
            'at hold it ("ids" in dataset.yaml says if it is a class)'
        )


def _assumed(layout: Layout, found: Survey) -> list[str]:
    """Sentences on values that may mean something else, where the data do not decide."""
    rule, labels = layout.rule, layout.labels
    assert rule is not None
    assert labels is not None
    notes = []
    if layout.guessed:
        objects = [value for value in found.ids if value not in (0, IGNORE_INDEX)]
        common = max((found.found_in[value] for value in objects), default=0)
        if len(objects) >= MANY_OBJECTS and common <= _MOST_MASKS * found.masks and not found.numbers_objects:
            notes.append(
                f"no id but 0 is in most masks: {len(objects)} ids are taken as classes; if they number the objects of "
                'each image, "threshold: 1" in dataset.yaml makes one class of them'
            )
    elif rule.nearest is None and rule.threshold is None and (line := thin_line(found)):
        notes.append(f"{line}, unless that is a class of its own")
    elif _names_alone(rule, labels):
        held = sorted({*found.ids} - {*layout.wishes.void})
        if held in ([0, 1], [0, 1, IGNORE_INDEX], [0, IGNORE_INDEX]):
            one = held[1]
            notes.append(
                f"{rule.said} does not say which of its two names is the background: 0 is taken as {labels.names[0]}, "
                f'{one} as {labels.names[1]} ("ids: [{one}, 0]" in dataset.yaml says the reverse)'
            )
    return notes


def _names_alone(rule: MaskRule, labels: LabelSpace) -> bool:
    """Whether nothing but the order of two names says which is 0, and none of them is a background."""
    alone = rule.in_order and not rule.exact and rule.threshold is None
    return alone and len(labels) == 2 and not any(map(is_background, labels.names))


# ---- wishes ---------------------------------------------------------------------------------------------------


def _set_threshold(layout: Layout) -> None:
    labels = layout.labels or BINARY_LABELS
    rule = layout.rule or MaskRule.plain(labels, default_colors=True)
    if len(labels) == 1:
        labels = _with_background(labels)
    if len(labels) != 2:
        raise UserError(
            f"{layout.wishes.file}: a threshold makes masks of two classes, background and object; there are "
            f"{counted(len(labels), 'class')} ({some(labels.names, 4)}): leave out the threshold, or name two"
        )
    if layout.wishes.ids not in ((), (0, IGNORE_INDEX)):
        raise UserError(
            f"{layout.wishes.file}: a threshold makes masks of the ids 0 and {IGNORE_INDEX}, in this order; ids says "
            f"{some(layout.wishes.ids)}: leave out one of the two"
        )
    exact = rule.exact and {rule.ids.get(0), rule.ids.get(IGNORE_INDEX)} == {0, 1}
    new = rule if exact else _two_classes(labels, rule)[0]
    said = rule.said or layout.wishes.file
    layout.labels, layout.rule = labels, dataclasses.replace(new, said=said, threshold=layout.wishes.threshold)
    low, high = labels.names[new.ids[0]], labels.names[new.ids[IGNORE_INDEX]]
    layout.notes.append(f"values below {layout.wishes.threshold:g} are {low}, all others are {high}")


def _set_ids(layout: Layout) -> None:
    wishes = layout.wishes
    labels = layout.labels or LabelSpace.of_size(len(wishes.ids))
    if len(labels) != len(wishes.ids):
        raise UserError(
            f"{wishes.file}: ids lists {len(wishes.ids)} values for {counted(len(labels), 'class')} "
            f"({some(labels.names, 4)}); expected one value for each class, in their order"
        )
    ids = {IGNORE_INDEX: IGNORE_INDEX, **{value: train for train, value in enumerate(wishes.ids)}}
    rule = layout.rule or MaskRule.plain(labels, default_colors=True)
    layout.labels = labels
    layout.rule = dataclasses.replace(rule, ids=ids, said=wishes.file, exact=True)


def _with_wishes(layout: Layout) -> MaskRule:
    """The rule with what is void and near besides."""
    wishes, rule = layout.wishes, layout.rule
    assert rule is not None
    ids = {value: IGNORE_INDEX for value in wishes.void if isinstance(value, int)}
    colors = {value: IGNORE_INDEX for value in wishes.void if not isinstance(value, int)}
    new = dataclasses.replace(rule, ids={**rule.ids, **ids}, colors={**rule.colors, **colors})
    if wishes.nearest is None:
        return new
    if layout.guessed:
        raise UserError(
            f"{wishes.file}: nearest_color needs classes with their colours beside it, or ids: a list of their values"
        )
    return dataclasses.replace(new, nearest=wishes.nearest)
