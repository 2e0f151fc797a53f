"""How the editor builds a node of each class: its sockets, its widgets and their order.

Rules are those of the front end 1.47.12 (`workbench/utils/nodeDefOrderingUtil.ts`,
`services/litegraphService.ts`, `scripts/widgets.ts`, `extensions/core/`).
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from comfy_runner.convert.ui import Slot, number, type_name
from comfy_runner.graph.nodes import SEED_NAMES, NodeClass, type_and_options


class _Missing(Enum):
    MISSING = auto()


NOTHING_TOLD: Mapping[str, bool] = {}

MISSING: Final = _Missing.MISSING
"""The value of a widget that has none, whose input is not sent."""

WIDGETS = frozenset(
    {"INT", "FLOAT", "BOOLEAN", "STRING", "MARKDOWN", "TEXTAREA", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
    | {"COLOR", "COLORS", "CURVE", "RANGE", "BOUNDING_BOX", "BOUNDING_BOXES", "CHART", "GALLERIA"}
    | {"IMAGEUPLOAD", "AUDIOUPLOAD", "AUDIO_UI", "AUDIO_RECORD", "WEBCAM", "IMAGECOMPARE"}
    | {"PAINTER", "LOAD_3D", "LOAD_3D_ADVANCED", "PREVIEW_3D"}
)
"""Types that are widgets; every other type is a socket."""

CUSTOM_WIDGETS = frozenset(
    {"LORAS", "LORA_POOL_CONFIG", "RANDOMIZER_CONFIG", "CYCLER_CONFIG", "VHSPATH", "INFO", "BOOL"}
    | {"MTB_COLOR", "FLOAT_CURVE", "THREED", "SVG", "TCOLOR", "CHEESE", "KEY", "EDIT", "WATCHER"}
    | {"IMAGEBASE64", "AUDIOINPUTMIX"}
)
"""Types that the front ends of packs make widgets of (Lora-Manager 25e72b43, VideoHelperSuite
4ee72c0, Easy-Use 4de1ab3, comfy_mtb eabe43d, LayerStyle, mixlab-nodes)."""

CUSTOM_FLAG = "comfy_runner.custom_widget"
"""Our own option of an input that a file calls a widget."""

CUSTOM_PREFIX = "AUTOCOMPLETE_TEXT_"
"""How the types of Lora-Manager's text widgets begin."""

CONTROLLED_NAMES = SEED_NAMES[:2]
"""Integers of exactly these names have a control value even where the class does not say so."""

UPLOADS = ("image_upload", "video_upload", "animated_image_upload")
"""Options of a required combo that add an upload button (`extensions/core/uploadImage.ts`)."""

AUDIO_UI = frozenset(
    {"LoadAudio", "SaveAudio", "PreviewAudio"}
    | {"SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"}
)
"""Classes that get an audio player (`extensions/core/uploadAudio.ts`)."""

PREVIEW_3D = frozenset(("Preview3D", "SaveGLB"))
"""Classes that get an `image` (`extensions/core/load3d.ts`, `saveMesh.ts`)."""

UPLOAD_3D_BUTTONS = {
    "upload 3d model": "upload3dmodel",
    "upload extra resources": "uploadExtraResources",
    "clear": "clear",
}
"""Buttons of a 3D loader, which take a place each and are sent, and what they hold
(`extensions/core/load3d.ts`)."""

LOADER_VIEW: Mapping[str, Any] = {
    "camera_info": {
        "position": {"x": 10, "y": 10, "z": 10.000000000000002},
        "target": {"x": 0, "y": 0, "z": 0},
        "zoom": 1,
        "cameraType": "perspective",
        "quaternion": {
            "x": -0.2798481423331213,
            "y": 0.3647051996310008,
            "z": 0.11591689595929511,
            "w": 0.8804762392171493,
        },
        "fov": 35,
        "aspect": 1,
        "near": 0.01,
        "far": 10000,
        "frustum": {"left": -5, "right": 5, "top": 5, "bottom": -5},
    },
    "model_3d_info": [],
}
"""How a Load3DAdvanced is looked at where no view is stored: what the editor sends then."""

PREVIEW_VIEW: Mapping[str, Any] = {
    **dict.fromkeys(("image", "mask", "normal", "recording"), ""),
    **LOADER_VIEW,
}
"""The same for a preview."""

MADE = ("AUDIO_RECORD", "PREVIEW_3D", "LOAD_3D", "LOAD_3D_ADVANCED")
"""Widgets that the editor makes a value for on sending, whatever text is stored."""


class Autogrow(NamedTuple):
    """A group of sockets of which there is always one more than are connected."""

    group: str
    names: tuple[str, ...]
    """Full name of each member that may ever be, in order: `images.image0`."""
    least: int
    """How many members there are when none is connected."""


class Socket(NamedTuple):
    """An input that only takes a connection."""

    name: str
    type: str
    autogrow: Autogrow | None = None
    match: str = ""
    """Id of the template whose members all take what one of them takes."""


class Widget(NamedTuple):
    """An input whose value stands in the node."""

    name: str
    type: str
    default: Any
    """What it holds where nothing is stored; `MISSING` for nothing."""
    places: int = 1
    """How many entries of `widgets_values` are its own."""
    sent: bool = True
    control: bool = False
    """Whether its second place says how the value changes after each run."""
    children: Mapping[str, "Branch"] | None = None
    """The inputs that each choice of a dynamic combo brings."""
    options: Mapping[str, Any] = {}
    """ComfyUI's own: min, max, multiline, ..."""

    @property
    def is_browsers(self) -> bool:
        """Whether a browser makes its value on sending: a scene, or what a camera sees."""
        return self.type == "WEBCAM" or (self.type == "LOAD_3D" and self.default is MISSING)


class Branch(NamedTuple):
    """The inputs of one choice of a dynamic combo, in the order of their slots."""

    inputs: tuple[Socket | Widget, ...]

    @property
    def widgets(self) -> tuple[Widget, ...]:
        """Its widgets alone."""
        return tuple(item for item in self.inputs if isinstance(item, Widget))


class Shape(NamedTuple):
    """A node of one class, as the editor builds it."""

    sockets: tuple[Socket, ...]
    widgets: tuple[Widget, ...]
    socket_names: frozenset[str]
    dynamic: tuple[str, ...]
    """Prefix of each dynamic combo's children, such as `codec.`."""
    outputs: tuple[str, ...]
    output_matches: tuple[str, ...]
    """Template id of each output whose type follows the inputs; else nothing."""
    title: str
    legacy: tuple[bool, ...] | None
    """For files that stored a value for inputs that are sockets now: for each place, whether it
    is kept; `None` where the class has no such input."""
    is_output: bool
    custom: frozenset[str]
    """Names of the widgets whose type a pack defines."""
    made: tuple[Widget, ...] = ()
    """Those of its own widgets that are of a type in `MADE`, and have a value to start with."""


def contradicted(form: Shape, slots: Sequence[Slot]) -> Mapping[str, bool]:
    """The inputs that the file's slots tell otherwise: name to whether they are widgets.

    What a type is depends on the packs whose front ends the author had. The slot of a widget says
    that it is one; newer files have a slot for every socket.
    """
    told: dict[str, bool] = {}
    for name, kind, _, is_widget in slots:
        if is_widget and name in form.socket_names:
            plain = kind not in WIDGETS and kind != "*"
            if plain and any(s.name == name and s.type == kind for s in form.sockets):
                told[name] = True
        elif not is_widget and name in form.custom:
            told[name] = False
    return told


def shape(node_class: NodeClass, told: Mapping[str, bool] = NOTHING_TOLD) -> Shape:
    """The shape of every node of the class, or of one whose file tells of inputs, by name, whether
    they are widgets.

    Sockets come first, then widgets; both in the order that the class gives, required before
    optional, inputs that only the editor adds last.
    """
    definition = _with_editor_inputs(node_class)
    for section in definition.values() if told else ():
        section.update({name: _told(section[name], told[name]) for name in told if name in section})
    inputs = list(_ordered(definition, node_class.order))
    items = [item for name, raw in inputs for item in _items(node_class.name, name, raw)]
    widgets = tuple(item for item in items if isinstance(item, Widget))
    sockets = tuple(item for item in items if isinstance(item, Socket))
    if node_class.name == "CustomCombo":
        widgets += (Widget("index", "INT", 0), Widget("option1", "STRING", ""))
    matches = node_class.output_matches
    return Shape(
        sockets,
        widgets,
        frozenset(socket.name for socket in sockets),
        tuple(f"{widget.name}." for widget in widgets if widget.children is not None),
        node_class.outputs,
        tuple(matches) + ("",) * (len(node_class.outputs) - len(matches)),
        node_class.title,
        _legacy_places(definition, {widget.name: widget for widget in widgets}),
        node_class.is_output,
        frozenset(w.name for w in widgets if _is_custom(w.type)),
        tuple(w for w in widgets if w.type in MADE and w.default is not MISSING),
    )


type _Definition = dict[str, dict[str, Any]]


def _with_editor_inputs(node_class: NodeClass) -> _Definition:
    """The class's inputs, and those that the editor adds to it."""
    required = dict(node_class.definition.get("required") or {})
    optional = {
        name: _forced(raw) for name, raw in (node_class.definition.get("optional") or {}).items()
    }
    if any(_flag(raw, *UPLOADS) for raw in required.values()):
        required.setdefault("upload", ["IMAGEUPLOAD"])
    if node_class.name in AUDIO_UI:
        required["audioUI"] = ["AUDIO_UI"]
    if "audio" in required and _flag(required["audio"], "audio_upload"):
        required["upload"] = ["AUDIOUPLOAD"]
    if node_class.name in PREVIEW_3D:
        required["image"] = ["PREVIEW_3D"]
    if node_class.name == "Load3DAdvanced":
        required["viewport_state"] = ["LOAD_3D_ADVANCED"]
    return {"required": required, "optional": optional}


def _forced(raw: Any) -> Any:
    """`defaultInput` on an optional input means a socket (`stores/nodeDefStore.ts`)."""
    kind, options = type_and_options(raw)
    return [kind, {**options, "forceInput": True}] if options.get("defaultInput") else raw


def _told(raw: Any, is_widget: bool) -> Any:
    kind, options = type_and_options(raw)
    return [kind, {**options, "forceInput": not is_widget, CUSTOM_FLAG: is_widget}]


def _is_custom(kind: str) -> bool:
    return kind in CUSTOM_WIDGETS or kind.startswith(CUSTOM_PREFIX)


def _flag(raw: Any, *names: str) -> bool:
    kind, options = type_and_options(raw)
    return (isinstance(kind, list) or kind == "COMBO") and any(
        options.get(name) is True for name in names
    )


def _ordered(
    definition: _Definition, order: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, Any]]:
    """Every input in the editor's order; one that is both required and optional is optional."""
    required, optional = definition["required"], definition["optional"]
    names = [name for name in order.get("required", ()) if name in required.keys() - optional]
    names += [name for name in order.get("optional", ()) if name in optional]
    inputs = {**required, **optional}
    for name in dict.fromkeys([*names, *inputs]):
        yield name, inputs[name]


def _items(class_type: str, name: str, raw: Any) -> Iterator[Socket | Widget]:
    """The sockets and widgets that one input of a definition makes."""
    kind, options = type_and_options(raw)
    match kind:
        case "COMFY_AUTOGROW_V3":
            yield from _autogrow(name, options)
            return
        case "COMFY_MATCHTYPE_V3":
            kind, match = _type_and_match(raw)
            if kind not in WIDGETS:
                yield Socket(name, kind, match=match)
                return
    shown = options.get("widgetType") or type_name(kind)
    is_widget = shown in WIDGETS or _is_custom(str(shown)) or options.get(CUSTOM_FLAG) is True
    if not is_widget or options.get("forceInput"):
        yield Socket(name, type_name(kind))
    else:
        yield from _widget(class_type, name, str(shown), kind, options)


def _autogrow(name: str, options: Mapping[str, Any]) -> Iterator[Socket]:
    template = _mapping(options.get("template"))
    inputs = _mapping(template.get("input"))
    members = [
        (key, *_type_and_match(raw))
        for section in ("required", "optional")
        for key, raw in _mapping(inputs.get(section)).items()
    ]
    names = template.get("names")
    count = template.get("max", 100)
    for key, kind, match in members:
        if isinstance(names, list):
            full = [f"{name}.{item}" for item in names]
        else:
            stem = template.get("prefix", "") if len(members) == 1 else key
            full = [f"{name}.{stem}{number}" for number in range(min(int(count), 1000))]
        least = min(max(1, int(template.get("min", 1)) + 1), len(full))
        yield Socket(f"{name}.{key}", kind, Autogrow(name, tuple(full), least), match)


def _type_and_match(raw: Any) -> tuple[str, str]:
    """The type of a socket, and the id of its match-type template or nothing."""
    kind, options = type_and_options(raw)
    if kind != "COMFY_MATCHTYPE_V3":
        return type_name(kind), ""
    template = _mapping(options.get("template"))
    return type_name(template.get("allowed_types")), str(template.get("template_id", ""))


def _widget(
    class_type: str, name: str, shown: str, kind: Any, options: Mapping[str, Any]
) -> Iterator[Widget]:
    """The widget of one input, and the widgets that come with it."""
    default = options.get("default")
    control = _is_controlled(shown, name, options)
    match shown:
        case "INT" | "FLOAT":
            start = 0 if default is None else default
            yield Widget(name, shown, start, 1 + control, control=control, options=options)
        case "BOOLEAN":
            yield Widget(name, shown, False if default is None else default)
        case "STRING" | "PAINTER":
            yield Widget(name, shown, "" if default is None else default, options=options)
        case "COMBO":
            yield from _combo(name, kind, options, control)
        case "COMFY_DYNAMICCOMBO_V3":
            branches = _branches(class_type, name, options)
            yield Widget(name, "COMBO", _first_key(branches), children=branches, options=options)
        case "IMAGEUPLOAD" | "AUDIOUPLOAD":
            yield Widget(name, shown, MISSING, sent=False)
        case "AUDIO_UI":
            yield Widget(name, shown, MISSING, 0, sent=False)
        case "LOAD_3D":
            if class_type == "Load3D":
                yield from (Widget(key, "BUTTON", held) for key, held in UPLOAD_3D_BUTTONS.items())
            yield Widget(name, shown, MISSING if name == "image" else PREVIEW_VIEW)
        case "IMAGECOMPARE":
            yield Widget(name, shown, ["", ""], 0)
        case "MARKDOWN":
            yield Widget(name, shown, "")
        case "TEXTAREA" | "CHART" | "GALLERIA":
            key, start = _NESTED[shown]
            yield Widget(name, shown, _mapping(options.get("options")).get(key) or start)
        case _:
            start, places = _REST.get(
                shown, ("" if shown.startswith(CUSTOM_PREFIX) else MISSING, 1)
            )
            yield Widget(name, shown, start if default is None else default, places)


_REST: Mapping[str, tuple[Any, int]] = {
    "COLOR": ("#000000", 1),
    "BOUNDING_BOX": ({"x": 0, "y": 0, "width": 512, "height": 512}, 5),
    "BOUNDING_BOXES": ([], 1),
    "COLORS": ([], 1),
    "CURVE": ({"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"}, 1),
    "RANGE": ({"min": 0, "max": 1}, 1),
    "AUDIO_RECORD": ("", 2),
    "WEBCAM": ("", 1),
    "LOAD_3D_ADVANCED": (LOADER_VIEW, 1),
    "PREVIEW_3D": ("", 1),
}
"""Widgets without a rule of their own: what they start with, and their places."""

_NESTED: Mapping[str, tuple[str, Any]] = {
    "TEXTAREA": ("default", ""),
    "CHART": ("data", {}),
    "GALLERIA": ("images", []),
}
"""Widgets that start with what stands under this key of `options` among their options."""


def _is_controlled(shown: str, name: str, options: Mapping[str, Any]) -> bool:
    """Whether a control value follows (`useIntWidget.ts`, `addValueControlWidget`)."""
    told = options.get("control_after_generate")
    if told is not None:
        return shown in ("INT", "FLOAT", "COMBO") and bool(told)
    return shown == "INT" and name in CONTROLLED_NAMES


def _combo(name: str, kind: Any, options: Mapping[str, Any], control: bool) -> Iterator[Widget]:
    if _is_told(options, "multi_select"):
        yield Widget(name, "COMBO", [], 1 + control, options=options)
        return
    choices = kind if isinstance(kind, list) else options.get("options")
    start = options.get("default") or (
        choices[0] if isinstance(choices, list) and choices else MISSING
    )
    remote = _is_told(options, "remote")
    if remote and start is MISSING:
        start = "Loading..."
    # A switch follows where the choices are fetched, and a control value comes with a filter.
    places = 1 + remote + 2 * control
    spec = {**options, "options": choices}
    yield Widget(name, "COMBO", start, places, control=control, options=spec)
    if remote and _mapping(options["remote"]).get("refresh_button"):
        yield Widget("refresh", "BUTTON", "refresh")


def _is_told(options: Mapping[str, Any], name: str) -> bool:
    """Whether an option is on; an object is, even an empty one."""
    return bool(options.get(name)) or isinstance(options.get(name), dict)


def _branches(class_type: str, name: str, options: Mapping[str, Any]) -> dict[str, Branch]:
    branches = {}
    for option in options.get("options") or ():
        inputs = _mapping(option.get("inputs"))
        branches[str(option["key"])] = Branch(
            tuple(
                item
                for section in ("required", "optional")
                for key, raw in _mapping(inputs.get(section)).items()
                for item in _items(class_type, f"{name}.{key}", _unexpanded(raw))
            )
        )
    return branches


def _unexpanded(raw: Any) -> Any:
    """The input of a dynamic combo: made after the node, so `{a|b}` in it is sent as it is
    (`extensions/core/dynamicPrompts.ts`)."""
    kind, options = type_and_options(raw)
    return [kind, {**options, "dynamicPrompts": False}] if options.get("dynamicPrompts") else raw


def _first_key(branches: Mapping[str, Branch]) -> Any:
    """The first choice; JavaScript counts those that are numbers before the others."""
    numbers = [key for key in branches if number(key) is not None]
    return min(numbers, key=int) if numbers else next(iter(branches), MISSING)


def _legacy_places(
    definition: _Definition, widgets: Mapping[str, Widget]
) -> tuple[bool, ...] | None:
    """Which places stay when a list has one for each forced input (`utils/litegraphUtil.ts`)."""
    places: list[bool] = []
    forced = False
    for name, raw in {**definition["required"], **definition["optional"]}.items():
        _, options = type_and_options(raw)
        is_forced = bool(options.get("forceInput"))
        if is_forced or name in widgets:
            places += [not is_forced, *([True] if options.get("control_after_generate") else [])]
            forced |= is_forced
    return tuple(places) if forced else None


def _mapping(raw: Any) -> Mapping[str, Any]:
    return raw if isinstance(raw, dict) else {}
