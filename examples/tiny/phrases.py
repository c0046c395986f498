"""What people say: the templates of every kind of edit, as data. `words` fills them and roughens them.

Slots: {x} a noun, {xs} its plural, {y} another noun, {c} a colour, {s} a scene, {p} a place (with its space, or
empty), {n} a number. A template is an order ("remove the {x}") and may get a frame ("could you ...?"); one that
starts with "=" is a whole sentence and gets none. American spelling here: `words` makes it British now and then.
"""

from __future__ import annotations

FRAMES = (
    "{}", "{}", "{}", "{}", "{}", "{}", "please {}", "please {}", "{} please", "{}, please", "can you {}?",
    "could you {}?", "could you please {}?", "can you please {}?", "would you {}?", "will you {}?",
    "i want you to {}", "i'd like you to {}", "i would like you to {}", "i need you to {}", "you should {}",
    "let's {}", "now {}", "just {}", "{} now", "{} for me", "{}, thanks", "{} thank you", "ok, {}", "okay {}",
    "hey, {}", "next, {}", "try to {}", "go ahead and {}", "in this picture, {}", "in this photo {}",
    "{} in this image", "{} in the photo", "is it possible to {}?", "can we {}?", "edit this so that you {}",
    "your task: {}",
)  # fmt: skip

PLACES = {
    (0, 0): ("in the top left corner", "at the top left", "in the upper left", "in the upper left corner", "top left",
             "in the top left", "up on the left"),
    (1, 0): ("at the top", "at the top center", "at the very top", "in the upper part", "up at the top", "top center",
             "near the top"),
    (2, 0): ("in the top right corner", "at the top right", "in the upper right", "in the upper right corner",
             "top right", "in the top right", "up on the right"),
    (0, 1): ("on the left", "on the left side", "to the left", "on the left-hand side", "at the left", "at left"),
    (1, 1): ("in the center", "in the middle", "right in the middle", "at the center", "in the middle of the picture",
             "in the center of the image"),
    (2, 1): ("on the right", "on the right side", "to the right", "on the right-hand side", "at the right",
             "at right"),
    (0, 2): ("in the bottom left corner", "at the bottom left", "in the lower left", "in the lower left corner",
             "bottom left", "in the bottom left", "down on the left"),
    (1, 2): ("at the bottom", "at the bottom center", "at the very bottom", "in the lower part", "down at the bottom",
             "bottom center", "near the bottom"),
    (2, 2): ("in the bottom right corner", "at the bottom right", "in the lower right", "in the lower right corner",
             "bottom right", "in the bottom right", "down on the right"),
}  # fmt: skip
ROWS = {0: ("at the top", "in a row at the top", "along the top"), 1: ("in the middle", "in a row in the middle", ""),
        2: ("at the bottom", "in a row at the bottom", "along the bottom")}  # fmt: skip
NUMBERS = {2: ("two", "two", "2", "a pair of", "a couple of"), 3: ("three", "three", "3")}

EDITS: dict[str, tuple[str, ...]] = {
    "add": (
        "add a {x}{p}", "add a {x}{p}", "add a {x}{p}", "add one {x}{p}", "put a {x}{p}", "put a {x}{p}",
        "place a {x}{p}", "insert a {x}{p}", "draw a {x}{p}", "paint a {x}{p}", "include a {x}{p}",
        "give me a {x}{p}", "show a {x}{p}", "show me a {x}{p}", "create a {x}{p}", "generate a {x}{p}",
        "make a {x} appear{p}", "have a {x} appear{p}", "set a {x}{p}", "drop a {x}{p}", "stick a {x}{p}",
        "paste a {x}{p}", "bring in a {x}{p}", "throw in a {x}{p}", "position a {x}{p}", "add in a {x}{p}",
        "add another thing: a {x}{p}", "=i want a {x}{p}", "=i'd like a {x}{p}", "=i would like to see a {x}{p}",
        "=i need a {x}{p}", "=there should be a {x}{p}", "=let there be a {x}{p}", "=we need a {x}{p}", "=a {x}{p}",
        "=how about a {x}{p}", "=it needs a {x}{p}", "=where is the {x}? add one{p}", "=could i have a {x}{p}?",
        "=can i get a {x}{p}?", "=there is no {x} yet, add one{p}", "=i'd love a {x}{p}", "=maybe a {x}{p}",
        "=a {x} should be{p}", "=a {x} would look good{p}",
    ),
    "add several": (
        "add {n} {xs}{p}", "add {n} {xs}{p}", "put {n} {xs}{p}", "place {n} {xs}{p}", "insert {n} {xs}{p}",
        "draw {n} {xs}{p}", "give me {n} {xs}{p}", "show {n} {xs}{p}", "include {n} {xs}{p}", "=i want {n} {xs}{p}",
        "=i'd like {n} {xs}{p}", "=there should be {n} {xs}{p}", "=i need {n} {xs}{p}", "=we need {n} {xs}{p}",
    ),
    "remove": (
        "remove the {x}", "remove the {x}", "remove the {x}", "delete the {x}", "delete the {x}", "erase the {x}",
        "take away the {x}", "take the {x} away", "get rid of the {x}", "get rid of that {x}", "take the {x} out",
        "take out the {x}", "make the {x} disappear", "make the {x} go away", "make the {x} vanish",
        "remove that {x}", "remove this {x}", "get the {x} out of here", "get that {x} out of the picture",
        "drop the {x}", "cut out the {x}", "cut the {x} out", "clear the {x}", "wipe the {x} away", "hide the {x}",
        "clean up the {x}", "edit out the {x}", "crop out the {x}", "photoshop out the {x}", "leave out the {x}",
        "lose the {x}", "remove the {x} from the image", "remove the {x} from the picture",
        "delete the {x} from this photo", "erase the {x} completely", "remove {x}", "delete {x}",
        "fill in where the {x} is", "=i don't want the {x}", "=i do not want the {x} here",
        "=the {x} should be gone", "=the {x} should not be there", "=no {x}", "=no {x} please", "=without the {x}",
        "=the same picture without the {x}", "=i want the {x} gone", "=i want the {x} removed",
        "=i'd like the {x} removed", "=there should be no {x}", "=the {x} is in the way",
        "=i don't like the {x}, remove it", "=see the {x}? take it away", "=away with the {x}",
        "=the {x} bothers me",
    ),
    "remove all": (
        "remove all the {xs}", "remove all the {xs}", "remove all {xs}", "remove every {x}", "remove the {xs}",
        "delete all the {xs}", "delete all {xs}", "delete every {x}", "delete the {xs}", "erase all the {xs}",
        "erase the {xs}", "take away all the {xs}", "take all the {xs} away", "get rid of all the {xs}",
        "get rid of the {xs}", "get rid of every {x}", "take out all the {xs}", "make all the {xs} disappear",
        "make the {xs} vanish", "clear all the {xs}", "clear out the {xs}", "edit out all the {xs}",
        "cut out every {x}", "remove each {x}", "remove both {xs}", "remove all of the {xs}", "remove any {x}",
        "hide all the {xs}", "get all the {xs} out of here", "remove all the {xs} from the picture",
        "remove all the {xs} in this image", "=no {xs}", "=no more {xs} please", "=without any {xs}",
        "=without the {xs}", "=i want all the {xs} gone", "=i don't want any {xs}", "=there should be no {xs}",
        "=all the {xs} should be gone",
    ),
    "remove people": (
        "remove all the people in this image", "remove all the people in this image", "remove all the people",
        "remove all people", "remove the people", "remove everyone", "remove everybody", "remove every person",
        "delete all the people", "delete the people", "delete everyone", "erase all the people", "erase everybody",
        "get rid of the people", "get rid of all the people", "get rid of everyone", "take the people out",
        "take away all the people", "take everyone out of the picture", "make the people disappear",
        "make everyone vanish", "make all the people go away", "clear the people", "edit out the people",
        "remove all humans", "remove any people", "remove all the persons", "remove all the men and women",
        "remove the people from this photo", "remove all the people from the picture", "hide all the people",
        "remove all of the people", "remove the crowd", "remove the tourists", "cut out all the people",
        "=no people", "=no people please", "=without people", "=without any people", "=i don't want any people",
        "=there should be no people", "=i want everyone gone", "=the same place without people",
        "=all the people should be gone", "=nobody should be in the picture",
    ),
    "replace": (
        "replace the {x} with a {y}", "replace the {x} with a {y}", "replace the {x} with a {y}",
        "replace the {x} by a {y}", "change the {x} to a {y}", "change the {x} into a {y}",
        "change the {x} for a {y}", "turn the {x} into a {y}", "turn the {x} to a {y}", "swap the {x} for a {y}",
        "swap the {x} with a {y}", "swap out the {x} for a {y}", "make the {x} a {y}", "make the {x} into a {y}",
        "make a {y} out of the {x}", "transform the {x} into a {y}", "convert the {x} into a {y}",
        "convert the {x} to a {y}", "exchange the {x} for a {y}", "switch the {x} to a {y}",
        "switch the {x} with a {y}", "substitute a {y} for the {x}", "put a {y} instead of the {x}",
        "put a {y} in place of the {x}", "use a {y} instead of the {x}", "put a {y} where the {x} is",
        "take away the {x} and put a {y} there", "remove the {x} and put a {y} in its place",
        "trade the {x} for a {y}", "morph the {x} into a {y}", "replace that {x} with a {y}",
        "replace {x} with {y}", "change {x} to {y}", "=instead of the {x} show a {y}",
        "=instead of the {x} i want a {y}", "=a {y} instead of the {x}", "=i want a {y} instead of the {x}",
        "=i'd like a {y} where the {x} is", "=the {x} should be a {y}", "=the {x} should become a {y}",
        "=the {x} becomes a {y}", "=let the {x} be a {y}", "=what if the {x} was a {y}?",
        "=i'd rather have a {y} than the {x}", "=not a {x} but a {y}",
    ),
    "recolour": (
        "make the {x} {c}", "make the {x} {c}", "make the {x} {c}", "change the {x} to {c}", "paint the {x} {c}",
        "paint the {x} in {c}", "turn the {x} {c}", "color the {x} {c}", "color the {x} in {c}",
        "recolor the {x} {c}", "recolor the {x} to {c}", "recolor the {x} in {c}",
        "change the color of the {x} to {c}", "change the {x}'s color to {c}", "set the color of the {x} to {c}",
        "set the {x} to {c}", "dye the {x} {c}", "make the color of the {x} {c}", "make that {x} {c}",
        "give the {x} a {c} color", "give the {x} a coat of {c} paint", "turn the color of the {x} to {c}",
        "tint the {x} {c}", "use {c} for the {x}", "make it a {c} {x}", "make the {x} look {c}",
        "fill the {x} with {c}", "spray the {x} {c}", "change {x} color to {c}", "make {x} {c}",
        "=the {x} should be {c}", "=i want the {x} to be {c}", "=i'd like the {x} to be {c}",
        "=i'd like the {x} in {c}", "=i want the {x} in {c}", "=i would like the {x} to be {c}",
        "=the {x} should be colored {c}", "=i want a {c} {x}", "=let the {x} be {c}", "=the {x} in {c}",
        "=what if the {x} was {c}?", "=the color of the {x} should be {c}", "=i prefer the {x} {c}",
        "=the {x} needs to be {c}", "=the {x} has to be {c}", "=how would the {x} look in {c}?",
    ),
    "background": (
        "change the background to {s}", "change the background to {s}", "replace the background with {s}",
        "replace the background by {s}", "put it in front of {s}", "set the background to {s}",
        "use {s} as the background", "use {s} as a background", "make the background {s}",
        "make {s} the background", "swap the background for {s}", "turn the background into {s}",
        "switch the background to {s}", "give it a background of {s}", "put {s} behind it",
        "put {s} in the background", "show {s} in the background", "place everything in front of {s}",
        "put everything in front of {s}", "move it to {s}", "move the scene to {s}", "change the scene to {s}",
        "set the scene in front of {s}", "exchange the background for {s}", "paint {s} behind it",
        "add {s} as the background", "have {s} in the background", "=i want {s} as the background",
        "=i'd like {s} in the background", "=the background should be {s}", "=the background should show {s}",
        "=let the background be {s}", "=instead of this background show {s}", "=i want it in front of {s}",
    ),
    "background plain": (
        "change the background to {c}", "make the background {c}", "make the background plain {c}",
        "make the background solid {c}", "use a {c} background", "use a plain {c} background",
        "replace the background with plain {c}", "replace the background with {c}", "set the background to {c}",
        "set the background color to {c}", "change the background color to {c}", "paint the background {c}",
        "color the background {c}", "fill the background with {c}", "put it on a {c} background",
        "put a plain {c} background behind it", "give it a {c} background", "turn the background {c}",
        "turn the background to solid {c}", "put everything on plain {c}", "swap the background for plain {c}",
        "=i want a {c} background", "=i'd like the background to be {c}", "=the background should be {c}",
        "=the background should be plain {c}", "=a {c} background", "=let the background be {c}",
    ),
    "background blur": (
        "blur the background", "make the background blurry", "add background blur",
        "put the background out of focus", "make the background out of focus", "blur what is behind",
        "soften the background", "blur only the background", "blur the background but not the object",
        "give it a blurry background", "defocus the background", "=the background should be blurry",
        "=i want a blurred background", "=i'd like the background blurred", "add bokeh to the background",
    ),
    "background grey": (
        "make the background black and white", "turn the background gray", "make the background grayscale",
        "remove the color from the background", "make only the background black and white",
        "turn the background black and white", "take the color out of the background", "desaturate the background",
        "keep the object in color and make the background black and white",
        "convert the background to black and white", "make the background colorless",
        "drain the color from the background", "=the background should be black and white",
        "=i want the background in black and white",
    ),
    "nothing": (
        "keep the image unchanged", "do nothing", "keep it the same", "leave it as it is", "leave it as it is",
        "don't change anything", "do not change anything", "change nothing", "leave everything as it is",
        "keep it as it is", "leave it alone", "leave the picture alone", "keep the picture the same",
        "leave the image unchanged", "don't touch it", "don't edit it", "keep everything", "keep it like this",
        "return the same image", "give me the same picture", "=no changes", "=no change", "=it is fine as it is",
        "=nothing to do", "=it's perfect, keep it", "=no edits please", "=everything stays as it is",
        "=stay the same", "=good as it is", "leave it be",
    ),
}  # fmt: skip

EFFECTS: dict[str, tuple[str, ...]] = {
    "bw": (
        "make it black and white", "convert to black and white", "turn it into a black and white photo",
        "make it grayscale", "convert the image to grayscale", "make it monochrome", "remove the color",
        "remove all the colors", "make the picture black and white", "turn this photo black and white",
        "take the color out", "make everything gray", "make the photo colorless", "use only shades of gray",
        "show it in black and white", "convert it into monochrome", "=i want it in black and white",
        "=it should be black and white", "=black and white", "=in black and white please",
    ),
    "sepia": (
        "make it sepia", "turn it into a sepia photo", "apply a sepia tone", "add a sepia filter",
        "make it look like an old photo", "give it a vintage look", "make it vintage", "make it look vintage",
        "make it look old", "age the photo", "make it look like an old photograph", "use sepia tones",
        "turn this into an old brown photo", "give it an antique look", "make it look like it is from 1900",
        "=i want it in sepia", "=it should look like an old photo", "=sepia",
    ),
    "warm": (
        "make it warmer", "use warmer colors", "make the colors warmer", "apply a warm filter", "warm up the image",
        "make the photo warmer", "give it warmer tones", "add warmth", "warm the picture up",
        "make the light warmer", "shift the colors to warm", "use a warmer white balance", "=i want warmer colors",
        "=it should look warmer",
    ),
    "cool": (
        "make it cooler", "use cooler colors", "make the colors cooler", "apply a cold filter",
        "make it look colder", "make it colder", "cool down the image", "give it colder tones",
        "make the photo cooler", "make the light colder", "use a cooler white balance", "shift the colors to cold",
        "=i want cooler colors", "=it should look colder",
    ),
    "bright": (
        "make it brighter", "brighten the image", "increase the brightness", "lighten the photo", "make it lighter",
        "brighten it up", "brighten the picture", "turn up the brightness", "raise the exposure",
        "make the image brighter", "increase the exposure", "lighten it up", "add more light",
        "=it is too dark, make it brighter", "=it should be brighter", "=i want it brighter",
    ),
    "dark": (
        "make it darker", "darken the image", "decrease the brightness", "make the photo darker",
        "lower the exposure", "darken it", "darken the picture", "turn down the brightness",
        "reduce the brightness", "lower the brightness", "dim the image", "reduce the exposure",
        "make the picture dimmer", "=it is too bright, make it darker", "=it should be darker", "=i want it darker",
    ),
    "contrast": (
        "increase the contrast", "add more contrast", "make it more contrasty", "boost the contrast",
        "make the contrast higher", "raise the contrast", "turn up the contrast", "add contrast",
        "give it more contrast", "make the contrast stronger", "use high contrast", "=i want more contrast",
        "=it needs more contrast",
    ),
    "vivid": (
        "make the colors more vivid", "increase the saturation", "make it more colorful", "boost the colors",
        "saturate the colors", "make the colors pop", "raise the saturation", "make the colors stronger",
        "make the colors more intense", "give it vivid colors", "turn up the saturation", "make it vivid",
        "=i want stronger colors", "=it should be more colorful",
    ),
    "faded": (
        "make the colors faded", "decrease the saturation", "make it look faded", "desaturate the image",
        "make the colors softer", "fade the colors", "make it faded", "wash out the colors", "make it washed out",
        "reduce the saturation", "use pale colors", "mute the colors", "make the colors paler",
        "give it muted colors", "=i want faded colors", "=the colors should be softer",
    ),
    "invert": (
        "invert the colors", "make it a negative", "turn it into a negative", "invert the image", "invert it",
        "make a negative of it", "reverse the colors", "flip the colors", "show the negative",
        "invert all the colors", "turn this photo into a negative", "=i want the colors inverted",
        "=inverted colors",
    ),
    "blur": (
        "blur the image", "make it blurry", "blur the whole photo", "add a blur", "make it out of focus", "blur it",
        "blur everything", "blur the picture", "make the photo blurry", "put it out of focus", "apply a blur",
        "make everything blurry", "soften the whole image", "=i want it blurry", "=it should be blurry",
    ),
    "night": (
        "make it night", "turn day into night", "make it look like night", "change it to nighttime",
        "make it a night scene", "turn it into night", "make it nighttime", "change the time to night",
        "make it look like it is night", "change the day to night", "set it at night", "show it at night",
        "turn this into a night scene", "=it should be night", "=i want it at night", "=at night",
    ),
    "golden": (
        "make it golden hour", "add golden sunset light", "make it look like sunset", "give it a golden light",
        "make it look like evening light", "make it look like golden hour", "add golden light",
        "use golden hour light", "add warm evening light", "make it evening", "bathe it in golden light",
        "give it sunset lighting", "make it a sunset", "=i want golden hour light", "=it should look like sunset",
    ),
    "pixel": (
        "pixelate the image", "make it pixelated", "turn it into pixel art", "make it pixel art",
        "add a mosaic effect", "pixelate it", "pixelate everything", "make it look like pixel art",
        "show it in big pixels", "apply a mosaic", "turn the photo into pixels",
        "make it look like an old video game", "=i want pixel art", "=it should be pixelated",
    ),
    "sketch": (
        "turn it into a pencil sketch", "make it a pencil drawing", "make it a sketch",
        "turn it into a line drawing", "convert to a sketch", "make it look like a pencil sketch",
        "draw it in pencil", "turn this photo into a drawing", "make it a drawing", "sketch it",
        "convert it to a pencil drawing", "show only the outlines", "turn it into line art",
        "make a pencil sketch of it", "=i want a pencil sketch", "=it should look like a sketch",
    ),
    "fog": (
        "add fog", "make it foggy", "add mist", "make it misty", "add haze", "put it in fog", "make it hazy",
        "cover it with fog", "add thick fog", "fill it with mist", "make the weather foggy", "add some fog",
        "make it look foggy", "=i want fog", "=it should be foggy", "=there should be fog",
    ),
    "tint": (
        "tint it {c}", "make everything {c}", "add a {c} tint", "apply a {c} filter", "give it a {c} tint",
        "tint the image {c}", "tint the picture {c}", "make the whole picture {c}", "color everything {c}",
        "add a {c} filter", "make it all {c}", "turn everything {c}", "use a {c} filter",
        "give everything a {c} color", "=i want everything in {c}", "=everything should be {c}",
    ),
}  # fmt: skip

JOINS = ("{} and {}", "{} and {}", "{}, and {}", "{} and then {}", "{}, then {}", "{}. {}", "{} and also {}",
         "first {}, then {}",          "{}; {}", "{} & {}", "{}. then {}", "{} then {}")  # fmt: skip

BRITISH = {
    "color": "colour", "colors": "colours", "colored": "coloured", "colorful": "colourful", "colorless": "colourless",
    "recolor": "recolour", "gray": "grey", "grayscale": "greyscale", "center": "centre", "airplane": "aeroplane",
    "donut": "doughnut", "motorcycle": "motorbike", "truck": "lorry", "tv": "telly", "ladybug": "ladybird",
    "rooster": "cockerel", "cookie": "biscuit", "firefighter": "fireman",
}  # fmt: skip
NAMES = {
    "bicycle": ("bike",), "airplane": ("plane", "jet"), "burger": ("hamburger",), "ufo": ("flying saucer",),
    "sailboat": ("boat", "sailing boat"), "gift": ("present",), "alarm clock": ("clock",),
    "cup of coffee": ("coffee",),
    "teddy bear": ("teddy",), "tv": ("television",), "soccer ball": ("football", "ball"), "laptop": ("computer",),
    "shoe": ("sneaker",), "rabbit": ("bunny",), "cat": ("kitty",), "dog": ("puppy",), "horse": ("pony",),
    "light bulb": ("bulb", "lamp"), "top hat": ("hat",), "dinosaur": ("dino",),
    "police officer": ("policeman", "cop"),
    "builder": ("construction worker", "worker"), "cook": ("chef",), "old man": ("grandpa",),
    "old woman": ("grandma",),
    "sheep": ("lamb",), "taxi": ("cab",), "corn": ("corn cob",), "ship": ("cruise ship",),
}  # fmt: skip
PLURALS = {
    "sheep": "sheep", "fish": "fish", "broccoli": "broccoli", "corn": "corn cobs", "man": "men", "woman": "women",
    "old man": "old men", "old woman": "old women", "loaf of bread": "loaves of bread",
    "cup of coffee": "cups of coffee",
    "bunch of grapes": "bunches of grapes", "policeman": "policemen", "fireman": "firemen",
}  # fmt: skip
PERSON = ("person", "human")
"""What any of the people may be called where there is only one."""
OBJECT = ("object", "thing", "item")
"""What anything may be called where there is only one."""

FILLER = (
    "really", "kindly", "nice", "simple", "quick", "some", "actually", "perhaps", "maybe", "so", "well", "right",
    "here", "today", "again", "more", "quite", "very", "then", "also", "image", "picture", "photo", "edit",
    "version", "style", "somehow", "bit", "little", "need", "want", "think", "would", "should", "must", "might",
    "want", "hope", "wish", "that", "this", "there", "good", "new", "better", "final", "do", "does", "work", "see",
    "look", "let", "have", "has", "it", "with", "for", "of", "my", "our", "your", "we", "us", "them", "who", "what",
    "how", "when", "where", "why", "yes", "but",
)  # fmt: skip
