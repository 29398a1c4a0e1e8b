"""Recipes: ordered rules that give every weight of a model its scheme. The file format is docs/formats/recipe.md.

This module knows no weight by name: a model family says which built-in recipes there are, and for which weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from toolkit.base.elements import ElementName, element_names, element_of
from toolkit.base.errors import RecipeError
from toolkit.base.strict_json import JsonObject, parse_json, read_json_file, shorten
from toolkit.base.weights import Weight
from toolkit.quant.scheme import Scheme, Search, check_scheme
from toolkit.tflite.target import CPU

FORMAT = "gemma-edge-recipe/1"

SEARCHES: dict[str, Search] = {"absmax": "absmax", "mse": "mse"}
MATCH = re.compile(r"[A-Za-z0-9_.*-]{1,256}", re.ASCII)
MATCH_WANTED = "1 to 256 letters, digits, dots, dashes, underscores and * (any characters)"


@dataclass(frozen=True, slots=True)
class Rule:
    """Gives a scheme to the weights whose whole name matches; `*` stands for any characters, also dots, or none.

    Unless it is optional, a rule must be the first match of some weight: a rule without effect is a mistake.
    """

    match: str
    scheme: Scheme
    optional: bool = False
    layers: str | None = None
    """The kind of the layers that the rule is for; the first `*` of `match` stands for the number of such a layer."""

    @property
    def pattern(self) -> tuple[str, str | None]:
        """The weights that it is for: those that match, of the layers of a kind."""
        return self.match, self.layers

    def matches(self, name: str) -> bool:
        """Whether it matches a weight's whole name; takes time in proportion to the name, whatever the pattern.

        >>> [Rule("layers.*.mlp.*", Scheme("int8")).matches(name) for name in ("layers.0.mlp.w", "layers.mlp.w")]
        [True, False]
        """
        first, *rest = self.match.split("*")
        if not rest:
            return name == first
        *middle, last = rest
        place, end = len(first), len(name) - len(last)
        if place > end or not (name.startswith(first) and name.endswith(last)):
            return False
        for piece in middle:  # each at its first place: no later one leaves more room for the pieces after it
            found = name.find(piece, place, end)
            if found < 0:
                return False
            place = found + len(piece)
        return True


@dataclass(frozen=True, slots=True)
class Recipe:
    """Rules in order of precedence.

    `static_activations`: round the inputs and outputs of products to int8 with the scales that the checkpoint states,
    where it states any. Otherwise LiteRT chooses a scale for each row of inputs from its values.
    """

    name: str
    rules: tuple[Rule, ...]
    static_activations: bool = False

    def for_layers(self, kinds: Mapping[str, Sequence[int]]) -> Recipe:
        """The recipe for a model: each rule for a kind of layers becomes a rule for each of these layers.

        `kinds`: the numbers of the model's layers by kind. RecipeError for another kind, and for a kind without layers
        unless the rule is optional.

        >>> rules = (Rule("layers.*.mlp.*", Scheme("int4"), layers="sparse"), Rule("*", Scheme("int8")))
        >>> [rule.match for rule in Recipe("mixed", rules).for_layers({"sparse": [0, 1]}).rules]
        ['layers.0.mlp.*', 'layers.1.mlp.*', '*']
        """
        rules: list[Rule] = []
        for rule in self.rules:
            if rule.layers is None:
                rules.append(rule)
                continue
            numbers = kinds.get(rule.layers)
            if numbers is None:
                raise RecipeError(self._what(rule), found=f"layers {rule.layers}", wanted=" or ".join(kinds) or "none")
            if not numbers and not rule.optional:
                found, remedy = f"a model without layers of the kind {rule.layers}", 'mark the rule "optional": true'
                raise RecipeError(self._what(rule), found=found, remedy=remedy)
            rules += (replace(rule, match=rule.match.replace("*", str(i), 1), layers=None) for i in numbers)
        return replace(self, rules=tuple(rules))

    def plan(self, weights: Sequence[Weight]) -> dict[str, Scheme]:
        """The scheme of each weight by name: that of the first rule that matches it.

        `weights`: all the weights that the recipe is for.
        RecipeError for a weight without a rule, a rule without a weight, and a scheme that does not fit its weight.
        """
        used: set[int] = set()
        schemes: dict[str, Scheme] = {}
        for weight in weights:
            index = self._index(weight.name)
            rule = self.rules[index]
            check_scheme(f"{weight.name} ({self._what(rule)})", weight.shape, rule.scheme)
            schemes[weight.name] = rule.scheme
            used.add(index)
        for index, rule in enumerate(self.rules):
            if index not in used and not rule.optional:
                remedy = 'correct its "match", move it up, or mark it "optional": true'
                raise RecipeError(self._what(rule), found="the rule gives no weight its scheme", remedy=remedy)
        return schemes

    def scheme(self, weight: str) -> Scheme:
        """The scheme of a weight by its name: that of the first rule that matches it; RecipeError without a rule."""
        return self.rules[self._index(weight)].scheme

    def with_search(self, search: Search) -> Recipe:
        """The same recipe with all scales chosen by this search."""
        rules = tuple(replace(rule, scheme=replace(rule.scheme, search=search)) for rule in self.rules)
        return replace(self, rules=rules)

    def changed(self, name: str, rules: Sequence[Rule]) -> Recipe:
        """A recipe that differs from this one in some rules.

        A rule whose `match`, for the same kind of layers, this recipe has takes that rule's place; the others go before
        all of its rules, which may then be without effect.

        >>> f32, int8 = Scheme("f32"), Scheme("int8")
        >>> base = Recipe("base", (Rule("norm", f32), Rule("*", f32)))
        >>> [str(rule.scheme) for rule in base.changed("own", [Rule("*", int8)]).rules]
        ['f32', 'int8 per channel']
        """
        own = {rule.pattern for rule in self.rules}
        first = tuple(rule for rule in rules if rule.pattern not in own)
        instead = {rule.pattern: rule for rule in rules if rule.pattern in own}
        kept = (replace(rule, optional=True) if first else rule for rule in self.rules)
        changed = zip(self.rules, kept, strict=True)
        return replace(self, name=name, rules=(*first, *(instead.get(old.pattern, new) for old, new in changed)))

    def _index(self, weight: str) -> int:
        assert all(rule.layers is None for rule in self.rules), f"{self._what()} is not for the layers of a model"
        index = next((index for index, rule in enumerate(self.rules) if rule.matches(weight)), None)
        if index is None:
            example = f'add a rule such as {{"match": "{weight}", "dtype": "f32"}}'
            raise RecipeError(self._what(), found=f"no rule for weight {weight}", remedy=example)
        return index

    def _what(self, rule: Rule | None = None) -> str:
        return f"recipe {self.name}" + (f", rule {rule.match}" if rule else "")


@dataclass(frozen=True, slots=True)
class RecipeSet:
    """The built-in recipes for one kind of weights, by name; also reads custom recipes from files.

    `package` holds the built-in files. `files` maps the name of a recipe to its file's name without `.json`, which is
    the name inside the file; the same name may stand for different files in different sets.
    """

    package: str
    files: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the built-in recipes, the most precise first."""
        return tuple(self.files)

    def load(self, name_or_path: str | Path) -> Recipe:
        """A built-in recipe by its name, or one from a JSON file; RecipeError names the file and the rule."""
        if str(name_or_path) in self.files:
            return built_in_recipe(self.package, self.files[str(name_or_path)])
        path = Path(name_or_path)
        if not path.exists():
            wanted = f"{', '.join(self.files)} or the path of a recipe file"
            raise RecipeError("recipe", found=shorten(str(name_or_path)), wanted=wanted)
        value = read_json_file(path, RecipeError, max_bytes=1_000_000)
        return _read_recipe(JsonObject(value, str(path), RecipeError), self._base)

    def _base(self, name: str) -> Recipe | None:
        own_name = self.files.get(name, name)
        return built_in_recipe(self.package, own_name) if own_name in self.files.values() else None


def built_in_recipe(package: str, name: str) -> Recipe:
    """The recipe in the file `name`.json of a Python package."""
    place = f"recipe {name}"
    value = parse_json((resources.files(package) / f"{name}.json").read_bytes(), None, RecipeError, place)
    return _read_recipe(JsonObject(value, None, RecipeError, place), lambda base: built_in_recipe(package, base))


def _read_recipe(fields: JsonObject, base_named: Callable[[str], Recipe | None]) -> Recipe:
    if fields.value("format") != FORMAT:
        fields.refuse("format", fields.value("format"), FORMAT)
    name = fields.string("name")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        fields.refuse("name", name, "1 to 64 letters, digits, dots, dashes and underscores")
    base = base_named(fields.string("base")) if fields.has("base") else None
    if fields.has("base") and base is None:
        fields.refuse("base", fields.string("base"), "a built-in recipe for the same weights")
    entries = fields.array("rules")
    places = [f"{fields.place}, rule {n}" if fields.place else f"rule {n}" for n in range(1, len(entries) + 1)]
    rules = tuple(_read_rule(item, fields.file, place) for item, place in zip(entries, places, strict=True))
    static = fields.flag("static_activations") if fields.has("static_activations") else None
    fields.finish()
    if not rules:
        raise RecipeError(fields.place, file=fields.file, found="no rules")
    seen: set[tuple[str, str | None]] = set()
    for place, rule in zip(places, rules, strict=True):
        if rule.pattern in seen:
            raise RecipeError(place, file=fields.file, found=f"the match {rule.match} a second time")
        seen.add(rule.pattern)
    recipe = Recipe(name, rules) if base is None else base.changed(name, rules)
    return recipe if static is None else replace(recipe, static_activations=static)


def _read_rule(value: object, file: str | None, place: str) -> Rule:
    fields = JsonObject(value, file, RecipeError, place)
    match = fields.string("match")
    if not MATCH.fullmatch(match):
        fields.refuse("match", match, MATCH_WANTED)
    fields = JsonObject(value, file, RecipeError, f"{place} ({match})")
    fields.ignore(["match"])
    dtype = next((name for name in element_names() if name == fields.string("dtype")), None)
    if dtype is None:
        fields.refuse("dtype", fields.string("dtype"), " or ".join(element_names()))
    search = SEARCHES.get(fields.string("search")) if fields.has("search") else "mse"
    if search is None:
        fields.refuse("search", fields.string("search"), " or ".join(SEARCHES))
    optional = fields.flag("optional") if fields.has("optional") else False
    layers = fields.string("layers") if fields.has("layers") else None
    if layers is not None and "*" not in match:
        fields.refuse("layers", layers, "a * in match, for the number of a layer")
    rule = Rule(match, Scheme(dtype, _read_block_size(fields, dtype), search), optional, layers)
    fields.finish()
    return rule


def _read_block_size(fields: JsonObject, dtype: ElementName) -> int | None:
    if not fields.has("block_size"):
        return None
    block_size = fields.integer("block_size", 1, 2**31 - 1)
    if not element_of(dtype).block_scales:
        with_blocks = " and ".join(name for name in element_names() if element_of(name).block_scales)
        fields.refuse("block_size", block_size, f"none: LiteRT has block scales for {with_blocks} only, not {dtype}")
    if block_size not in CPU.block_sizes:
        fields.refuse("block_size", block_size, " or ".join(map(str, CPU.block_sizes)))
    return block_size
