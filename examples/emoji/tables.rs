//! Which emoji the dataset shows, and what instructions call them.

/// Occupations; each as person, man and woman, in every tone.
pub const ROLES: [(&str, &str); 20] = [
    ("health-worker", "health worker"),
    ("student", "student"),
    ("teacher", "teacher"),
    ("judge", "judge"),
    ("farmer", "farmer"),
    ("cook", "cook"),
    ("mechanic", "mechanic"),
    ("factory-worker", "factory worker"),
    ("office-worker", "office worker"),
    ("scientist", "scientist"),
    ("technologist", "technologist"),
    ("singer", "singer"),
    ("artist", "artist"),
    ("pilot", "pilot"),
    ("astronaut", "astronaut"),
    ("firefighter", "firefighter"),
    ("police-officer", "police officer"),
    ("detective", "detective"),
    ("guard", "guard"),
    ("construction-worker", "construction worker"),
];

/// Beginning of the name, noun, pronoun.
pub const GENDERS: [(&str, &str, &str); 3] =
    [("", "person", "them"), ("man-", "man", "him"), ("woman-", "woman", "her")];

/// Hair of people without an occupation.
pub const HAIRS: [(&str, &str); 4] =
    [("red-hair", "red hair"), ("curly-hair", "curly hair"), ("white-hair", "white hair"), ("bald", "no hair")];

pub const HANDS: [(&str, &str); 10] = [
    ("waving-hand", "waving hand"),
    ("thumbs-up", "thumbs up"),
    ("thumbs-down", "thumbs down"),
    ("raised-hand", "raised hand"),
    ("ok-hand", "ok hand"),
    ("victory-hand", "victory hand"),
    ("crossed-fingers", "crossed fingers"),
    ("raised-fist", "raised fist"),
    ("call-me-hand", "call me hand"),
    ("folded-hands", "folded hands"),
];

pub const FACES: [(&str, &str); 30] = [
    ("grinning-face", "grinning"),
    ("slightly-smiling-face", "smiling"),
    ("winking-face", "winking"),
    ("crying-face", "crying"),
    ("loudly-crying-face", "sobbing"),
    ("angry-face", "angry"),
    ("neutral-face", "neutral"),
    ("expressionless-face", "expressionless"),
    ("sleeping-face", "sleeping"),
    ("flushed-face", "flushed"),
    ("face-with-open-mouth", "surprised"),
    ("frowning-face", "frowning"),
    ("smiling-face-with-heart-eyes", "in love"),
    ("smiling-face-with-sunglasses", "cool"),
    ("face-with-tongue", "cheeky"),
    ("zany-face", "zany"),
    ("nerd-face", "nerdy"),
    ("face-with-tears-of-joy", "laughing"),
    ("zipper-mouth-face", "silent"),
    ("face-with-monocle", "curious"),
    ("worried-face", "worried"),
    ("fearful-face", "fearful"),
    ("thinking-face", "thinking"),
    ("kissing-face", "kissing"),
    ("face-with-medical-mask", "masked"),
    ("nauseated-face", "sick"),
    ("partying-face", "partying"),
    ("cowboy-hat-face", "cowboy"),
    ("hot-face", "hot"),
    ("cold-face", "cold"),
];

/// Things that come in colours: what they are, and each one's name and colour.
pub const COLOURED: [(&str, &[(&str, &str)]); 4] = [
    (
        "heart",
        &[
            ("red-heart", "red"),
            ("orange-heart", "orange"),
            ("yellow-heart", "yellow"),
            ("green-heart", "green"),
            ("blue-heart", "blue"),
            ("purple-heart", "purple"),
            ("brown-heart", "brown"),
            ("black-heart", "black"),
            ("white-heart", "white"),
            ("pink-heart", "pink"),
            ("grey-heart", "grey"),
            ("light-blue-heart", "light blue"),
        ],
    ),
    (
        "circle",
        &[
            ("red-circle", "red"),
            ("orange-circle", "orange"),
            ("yellow-circle", "yellow"),
            ("green-circle", "green"),
            ("blue-circle", "blue"),
            ("purple-circle", "purple"),
            ("brown-circle", "brown"),
            ("black-circle", "black"),
            ("white-circle", "white"),
        ],
    ),
    (
        "square",
        &[
            ("red-square", "red"),
            ("orange-square", "orange"),
            ("yellow-square", "yellow"),
            ("green-square", "green"),
            ("blue-square", "blue"),
            ("purple-square", "purple"),
            ("brown-square", "brown"),
            ("black-large-square", "black"),
            ("white-large-square", "white"),
        ],
    ),
    (
        "book",
        &[("closed-book", "red"), ("green-book", "green"), ("blue-book", "blue"), ("orange-book", "orange")],
    ),
];

pub const CLOCKS: [(&str, &str); 24] = [
    ("one-oclock", "one oclock"),
    ("two-oclock", "two oclock"),
    ("three-oclock", "three oclock"),
    ("four-oclock", "four oclock"),
    ("five-oclock", "five oclock"),
    ("six-oclock", "six oclock"),
    ("seven-oclock", "seven oclock"),
    ("eight-oclock", "eight oclock"),
    ("nine-oclock", "nine oclock"),
    ("ten-oclock", "ten oclock"),
    ("eleven-oclock", "eleven oclock"),
    ("twelve-oclock", "twelve oclock"),
    ("one-thirty", "one thirty"),
    ("two-thirty", "two thirty"),
    ("three-thirty", "three thirty"),
    ("four-thirty", "four thirty"),
    ("five-thirty", "five thirty"),
    ("six-thirty", "six thirty"),
    ("seven-thirty", "seven thirty"),
    ("eight-thirty", "eight thirty"),
    ("nine-thirty", "nine thirty"),
    ("ten-thirty", "ten thirty"),
    ("eleven-thirty", "eleven thirty"),
    ("twelve-thirty", "twelve thirty"),
];

pub const MOONS: [(&str, &str); 8] = [
    ("new-moon", "new"),
    ("waxing-crescent-moon", "waxing crescent"),
    ("first-quarter-moon", "first quarter"),
    ("waxing-gibbous-moon", "waxing gibbous"),
    ("full-moon", "full"),
    ("waning-gibbous-moon", "waning gibbous"),
    ("last-quarter-moon", "last quarter"),
    ("waning-crescent-moon", "waning crescent"),
];

pub const ARROWS: [(&str, &str); 8] = [
    ("up-arrow", "up"),
    ("up-right-arrow", "up right"),
    ("right-arrow", "right"),
    ("down-right-arrow", "down right"),
    ("down-arrow", "down"),
    ("down-left-arrow", "down left"),
    ("left-arrow", "left"),
    ("up-left-arrow", "up left"),
];

pub const KEYCAPS: [(&str, &str); 12] = [
    ("keycap-0", "0"),
    ("keycap-1", "1"),
    ("keycap-2", "2"),
    ("keycap-3", "3"),
    ("keycap-4", "4"),
    ("keycap-5", "5"),
    ("keycap-6", "6"),
    ("keycap-7", "7"),
    ("keycap-8", "8"),
    ("keycap-9", "9"),
    ("keycap-10", "10"),
    ("keycap-hashtag", "hash"),
];

pub const LETTERS: [(&str, &str); 14] = [
    ("a-button-blood-type", "a"),
    ("b-button-blood-type", "b"),
    ("ab-button-blood-type", "ab"),
    ("o-button-blood-type", "o"),
    ("p-button", "p"),
    ("cl-button", "cl"),
    ("cool-button", "cool"),
    ("free-button", "free"),
    ("id-button", "id"),
    ("new-button", "new"),
    ("ng-button", "ng"),
    ("ok-button", "ok"),
    ("sos-button", "sos"),
    ("vs-button", "vs"),
];

pub const SIGNS: [(&str, &str); 11] = [
    ("no-bicycles", "no bicycles"),
    ("no-entry", "no entry"),
    ("no-littering", "no littering"),
    ("no-mobile-phones", "no phones"),
    ("no-one-under-eighteen", "no minors"),
    ("no-pedestrians", "no pedestrians"),
    ("no-smoking", "no smoking"),
    ("prohibited", "prohibited"),
    ("warning", "warning"),
    ("radioactive", "radioactive"),
    ("biohazard", "biohazard"),
];

/// Animals, food and things, for changes of the whole picture.
pub const THINGS: [&str; 80] = [
    "dog-face", "cat-face", "mouse-face", "rabbit-face", "fox", "bear", "panda", "koala", "lion", "cow-face",
    "pig-face", "frog", "chicken", "penguin", "bird", "duck", "owl", "wolf", "horse-face", "unicorn",
    "honeybee", "lady-beetle", "butterfly", "snail", "turtle", "snake", "octopus", "crab", "dolphin", "tropical-fish",
    "elephant", "giraffe", "camel", "sheep", "rooster", "peacock", "cactus", "evergreen-tree", "palm-tree", "sunflower",
    "tulip", "rose", "four-leaf-clover", "mushroom", "red-apple", "green-apple", "banana", "grapes", "strawberry", "watermelon",
    "pineapple", "cherries", "peach", "lemon", "tomato", "carrot", "broccoli", "avocado", "bread", "cheese-wedge",
    "hamburger", "pizza", "taco", "doughnut", "cookie", "birthday-cake", "soccer-ball", "basketball", "guitar", "trumpet",
    "camera", "umbrella", "rocket", "automobile", "bicycle", "sailboat", "house", "key", "light-bulb", "gem-stone",
];
