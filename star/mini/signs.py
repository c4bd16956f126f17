"""The mini world's signs: a short word in capitals on a board, in fonts that ship with matplotlib.

Test words are never seen before the test: neither the base's pretraining nor reinforcement learning draws them.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from star.mini.scenes import RGB, background, to_uint8

FONTS = ("DejaVuSansMono-Bold.ttf", "DejaVuSansMono.ttf")
# Pixels: the left edge of the first letter's column, the columns' pitch, the letters' size, the rows' baselines.
LEFT, PITCH, FONT_SIZE = 5, 11, 18
ROWS = (27, 39, 51)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LENGTHS = (3, 4, 5)
PROMPT = "a sign that says "
_TEXT = """
ACE ACT ADD AGE AIR ALL AND ANT APE ARC ARM ART ASK BAG BAR BAT BAY BED BEE BET BIG BIN BOX BOY BUD BUS BUY CAB CAP CAR
CAT COW CRY CUP CUT DAY DEN DIG DOG DRY EAR EAT EGG END EYE FAN FAR FAT FIG FIT FIX FLY FOG FOX FUN GAP GAS GEM GET GUM
HAT HEN HIT HOP HOT HUG ICE INK JAM JAR JET JOB JOY KEY KID LAB LAP LAW LEG LIP LOG MAP MIX MUD NAP NET NOW NUT OAK OIL
OWL PAN PAY PEN PET PIE PIG POT RAT RED ROW RUN SAW SEA SKY SUN TAX TEA TEN TIN TOP TOY VAN WAX WEB WET WIN YES ZIP ZOO
ACID AREA ARMY AUTO BABY BACK BAKE BALL BAND BANK BARN BATH BEAN BEAR BELL BIKE BIRD BLUE BOAT BOLD BOOK BOWL BREW CAFE
CAKE CALM CAMP CARD CASH CAVE CITY CLAY CLUB COAL COAT COIN COLD CORN CUBE DARK DATE DEEP DEER DESK DOCK DOOR DOVE DRUM
DUCK DUST EAST EASY ECHO EXIT FACE FARM FAST FILM FIRE FISH FIVE FLAG FOOD FORK FOUR FREE FROG GAME GATE GIFT GOAL GOAT
GOLD GOOD HALL HAND HARD HAWK HEAD HELP HERO HIGH HILL HOME HOPE HOUR ICON IDEA IRON JAZZ JOIN JUMP KING KITE LAKE LAMP
LAND LEAF LIFE LION LOVE LUCK MAIL MARK MAZE MEAL MILK MINT MOON NEST NEWS NICE NOON NORTH OPEN OVEN PARK PATH PEAR PINK
PLAN PLUM POEM POOL QUIZ RAIN RICE RING ROAD ROCK ROOF ROSE SAFE SALE SALT SAND SEAL SHIP SHOP SLOW SNOW SOAP SOFA SOUP
STAR STOP SWIM TAXI TENT TIME TREE TUNA VASE VIEW WALK WALL WEST WILD WIND WOLF WOOD YARD YEAR ZERO ZONE ABOVE ACORN
APPLE ARROW BEACH BERRY BLACK BLOCK BOARD BRAVE BREAD BRICK BRUSH CABIN CANDY CHAIR CHALK CHEST CLEAN CLOCK CLOUD COAST
CORAL CRANE CROWN DAILY DANCE DREAM DRIFT EAGLE EARTH EIGHT EMPTY EXTRA FAITH FENCE FIELD FLAME FLOOR FLUTE FRESH FROST
FRUIT GHOST GIANT GLASS GLOBE GRAIN GRAPE GRASS GREEN HAPPY HEART HONEY HORSE HOTEL HOUSE IMAGE IVORY JUICE KNIFE LASER
LEMON LIGHT LUNCH MAGIC MANGO MAPLE MEDAL METAL MONEY MOUSE MUSIC NIGHT NOVEL OCEAN OLIVE ONION OPERA ORBIT PANDA PAPER
PARTY PEACE PEACH PEARL PIANO PILOT PIZZA PLANE PLANT PLATE POINT PRIZE QUEEN QUICK RADIO RIVER ROBOT ROYAL SALAD SCALE
SHARK SHEEP SHIRT SKATE SMILE SOLAR SOUTH SPACE SPICE SPOON STAGE STEAM STONE STORM SUGAR SWEET TABLE TIGER TODAY TOWER
TRAIL TRAIN TRUCK TULIP UNITY URBAN VALUE VIDEO VIOLA WATER WHALE WHEAT WHITE WORLD YACHT YOUNG ZEBRA
"""
WORDS = tuple(_TEXT.split())
TEST_WORDS = frozenset(np.random.default_rng(43).choice(WORDS, size=128, replace=False).tolist())
TRAIN_WORDS = tuple(word for word in WORDS if word not in TEST_WORDS)


def prompt(word: str) -> str:
    return f'{PROMPT}"{word}"'


def draw_word(rng: np.random.Generator, real: float = 0.4) -> str:
    """A training word (with probability ``real``) or a random string of letters; never a test word."""
    if rng.random() < real:
        return TRAIN_WORDS[rng.integers(len(TRAIN_WORDS))]
    while True:
        word = "".join(rng.choice(list(LETTERS), size=rng.choice(LENGTHS)))
        if word not in TEST_WORDS:
            return word


def draw_sign(word: str, rng: np.random.Generator, haze: float = 0.0) -> np.ndarray:
    """A board with a word of 3 to 5 letters on a busy ground, uint8 (SIZE, SIZE, 3).

    Letters stand in fixed columns and one of three rows: a model of this size does not learn to spell in free layout.

    Args:
        haze: the letters cover the board by 1 - haze to 1, all of a word alike.
    """
    ground = Image.fromarray(to_uint8(background(rng)))
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", FONTS[rng.integers(len(FONTS))])
    face = ImageFont.truetype(path, FONT_SIZE)
    baseline = ROWS[rng.integers(len(ROWS))]
    board = np.array(list(RGB.values())[rng.integers(len(RGB))]) + rng.uniform(-9, 9, 3)
    ink = 18 if board @ (0.299, 0.587, 0.114) > 125 else 246
    opacity = 1 - haze * rng.random() if haze else 1.0
    letters = tuple(to_uint8(board + opacity * (ink - board)).tolist())
    pen = ImageDraw.Draw(ground)
    right = LEFT + PITCH * len(word) + 3
    pen.rectangle((LEFT - 4, baseline - 17, right, baseline + 4), fill=tuple(to_uint8(board).tolist()))
    for column, letter in enumerate(word):
        pen.text((LEFT + PITCH * (column + 0.5), baseline), letter, font=face, fill=letters, anchor="ms")
    return np.asarray(ground)
