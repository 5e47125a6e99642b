"""What the model can draw: concepts, styles and backgrounds.

A concept is an icon that all three emoji sets draw, with the words that people use for it. Icons that are mostly
text, and icons that cannot be told apart at 64 pixels, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """One thing the model can draw.

    `icon` is its name in the emoji sets, `names` what captions call it (the first is the one reports use), and `mirror`
    says whether its mirror image is the same thing, as it is not for a musical note.
    """

    icon: str
    names: tuple[str, ...]
    mirror: bool = True

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Style:
    """One emoji set: the npm package that ships it and the words that ask for it."""

    package: str
    words: tuple[str, ...]


# The order is the style index in the picture store.
STYLES = (
    Style("@iconify-json/noto", ("classic",)),
    Style("@iconify-json/fluent-emoji-flat", ("flat",)),
    Style("@iconify-json/fluent-emoji", ("3d",)),
)

# White comes first: it is what a prompt without a background gets.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 27),
    "gray": (150, 154, 160),
    "red": (214, 45, 48),
    "orange": (245, 146, 30),
    "yellow": (252, 216, 62),
    "green": (52, 160, 84),
    "cyan": (84, 206, 222),
    "blue": (38, 98, 220),
    "purple": (128, 58, 176),
    "pink": (250, 166, 200),
}

# One line a concept: "icon: name, other name, ...". The name is the icon's own where the part after the colon is
# empty; a "!" before the icon says that its mirror image is wrong.
_TABLE = """
red-apple: red apple, apple
green-apple:
pear:
tangerine: orange, tangerine
lemon:
banana:
watermelon:
grapes:
strawberry:
blueberries: blueberries, blueberry
cherries: cherries, cherry
peach:
pineapple:
kiwi-fruit: kiwi
tomato:
avocado:
eggplant: eggplant, aubergine
carrot:
ear-of-corn: corn
hot-pepper: hot pepper, chili
broccoli:
garlic:
onion:
mushroom:
bread:
croissant:
pretzel:
pancakes:
waffle:
cheese-wedge: cheese
hamburger: hamburger, burger
french-fries: french fries, fries
pizza:
hot-dog:
cooking: fried egg, egg
popcorn:
sushi:
soft-ice-cream: ice cream
doughnut: donut, doughnut
cookie:
birthday-cake: birthday cake, cake
cupcake: cupcake, muffin
candy:
lollipop:
hot-beverage: cup of coffee, coffee
glass-of-milk: glass of milk, milk
beer-mug: beer
wine-glass: glass of wine, wine
cat-face: cat, kitten
dog-face: dog, puppy
mouse-face: mouse
rabbit-face: rabbit, bunny
fox:
bear:
panda:
koala:
tiger-face: tiger
lion:
cow-face: cow
pig-face: pig
frog:
monkey-face: monkey
chicken: chicken, hen
baby-chick: chick
penguin:
duck:
owl:
eagle:
wolf:
unicorn:
zebra:
elephant:
giraffe:
flamingo:
parrot:
hedgehog:
bat:
dragon-face: dragon
t-rex: dinosaur, t-rex
honeybee: bee
lady-beetle: ladybug, ladybird
butterfly:
snail:
bug: caterpillar
spider:
turtle:
snake:
octopus:
crab:
lobster:
tropical-fish: fish, tropical fish
dolphin:
spouting-whale: whale
shark:
sunflower:
tulip:
rose:
hibiscus: hibiscus, flower
cherry-blossom:
cactus:
palm-tree:
evergreen-tree: pine tree
deciduous-tree: tree
four-leaf-clover: clover
maple-leaf:
sun:
crescent-moon: moon, crescent moon
full-moon:
star:
cloud:
rainbow:
high-voltage: lightning
snowflake:
fire: fire, flame
droplet: drop of water, water drop
volcano:
snow-capped-mountain: mountain
globe-showing-europe-africa: earth, globe
ringed-planet: planet, saturn
snowman:
automobile: car, red car
taxi:
bus:
police-car:
ambulance:
fire-engine: fire truck, fire engine
tractor:
racing-car:
bicycle: bicycle, bike
motor-scooter: scooter
locomotive: train, locomotive
airplane: airplane, plane
rocket:
helicopter:
sailboat: sailboat, boat
flying-saucer: ufo, flying saucer
anchor:
house:
castle:
tent:
ferris-wheel:
balloon:
wrapped-gift: gift, present
trophy:
soccer-ball: soccer ball
basketball:
tennis: tennis ball
baseball:
bullseye: target
guitar:
violin:
trumpet:
drum:
microphone:
headphone: headphones
camera:
television: television, tv
laptop: laptop, computer
mobile-phone: phone, mobile phone
light-bulb: light bulb, lamp
candle:
closed-book: red book, book
pencil:
artist-palette: palette
scissors:
key:
locked: lock, padlock
hammer:
axe:
gear:
bomb:
umbrella:
crown:
top-hat: top hat, hat
sunglasses:
t-shirt: t-shirt, shirt
dress:
running-shoe: shoe, sneaker
backpack:
gem-stone: gem, diamond
hourglass-done: hourglass
bell:
magnifying-glass-tilted-left: magnifying glass
teddy-bear:
game-die: dice
robot:
ghost:
alien:
skull:
jack-o-lantern: pumpkin, jack-o-lantern
christmas-tree:
red-heart: red heart, heart
blue-heart:
green-heart:
yellow-heart:
purple-heart:
grinning-face: happy face, smiley
angry-face:
crying-face: sad face, crying face
smiling-face-with-sunglasses: cool face
clown-face: clown
chair:
teapot:
money-bag: money bag, money
envelope: envelope, letter
kite:
shield:
!musical-note: musical note, music
"""


def _parse(line: str) -> Concept:
    icon, _, names = line.partition(":")
    mirror = not icon.startswith("!")
    icon = icon.lstrip("!")
    return Concept(icon, tuple(name.strip() for name in (names or icon.replace("-", " ")).split(",")), mirror)


CONCEPTS = tuple(_parse(line) for line in (row.replace(": ", ":").rstrip(":") for row in _TABLE.split("\n") if row))


def held_out_pairs() -> frozenset[tuple[int, int]]:
    """The (concept index, background index) pairs that training never shows: one colour of every second concept.

    They are what tells composing from recalling: both the concept and the colour are seen often, never together.
    White is never held out, since prompts without a background mean white.
    """
    colours = len(BACKGROUNDS) - 1
    return frozenset((concept, 1 + (concept // 2) % colours) for concept in range(0, len(CONCEPTS), 2))
