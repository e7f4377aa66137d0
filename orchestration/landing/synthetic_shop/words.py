"""What products, brands and customers of a synthetic shop are called."""

# Topic: (category, what it is, what it is like). Content models have these words to go by.
TOPICS = {
    "tea": (
        "kitchen",
        "teapot teacup saucer infuser caddy strainer samovar tea-tray",
        "porcelain enamel brewing afternoon herbal darjeeling",
    ),
    "baking": (
        "kitchen",
        "cake-tin muffin-tray whisk rolling-pin cookie-cutter cake-stand sieve spatula",
        "pastry sugar icing sourdough gingerbread sponge",
    ),
    "cooking": (
        "kitchen",
        "saucepan skillet ladle casserole colander peeler wok stockpot",
        "cast-iron non-stick copper chef gourmet induction",
    ),
    "planting": (
        "garden",
        "flowerpot trowel planter watering-can seed-box trellis spade dibber",
        "terracotta balcony orchid herb-garden compost perennial",
    ),
    "barbecue": (
        "garden",
        "grill skewer tongs charcoal-starter smoker drip-pan fire-pit grill-brush",
        "hickory smoky outdoor ember marinade mesquite",
    ),
    "birds": (
        "garden",
        "bird-feeder nest-box birdbath seed-dispenser perch birdhouse suet-holder bird-table",
        "robin sparrow woodland feather songbird starling",
    ),
    "blocks": (
        "toys",
        "brick-set marble-run train-track crane castle-kit robot-kit bridge-kit gear-box",
        "stackable building wooden-block magnetic engineer junior",
    ),
    "dolls": (
        "toys",
        "doll dollhouse pram puppet teddy doll-wardrobe cradle doll-dress",
        "cuddly plush princess nursery knitted-hair storytime",
    ),
    "games": (
        "toys",
        "board-game puzzle dice-set card-game chess-set domino quiz-box memory-game",
        "strategy family travel-size riddle cooperative classic-edition",
    ),
    "cycling": (
        "sports",
        "bike-light saddle handlebar-bag pump bike-helmet pedal bottle-cage chain-lock",
        "reflective gravel commuter carbon touring tubeless",
    ),
    "running": (
        "sports",
        "running-shoe headband armband running-vest stopwatch race-belt insole tracksuit",
        "marathon breathable sprint cushioned interval finisher",
    ),
    "hiking": (
        "sports",
        "backpack tent sleeping-bag trekking-pole headlamp compass thermos hammock",
        "alpine summit ultralight trail waterproof expedition",
    ),
    "writing": (
        "office",
        "fountain-pen pencil-case inkwell rollerball eraser sharpener nib-set marker",
        "calligraphy italic graphite executive refillable india-ink",
    ),
    "paper": (
        "office",
        "notebook envelope-set planner sketchbook wrapping-paper sticker-sheet album card-set",
        "dotted linen-paper recycled handbound monthly ivory",
    ),
    "desks": (
        "office",
        "desk-lamp monitor-stand footrest file-tray chair-mat letter-rack pinboard drawer-unit",
        "ergonomic adjustable walnut-veneer height-memory stackable-tray anti-glare",
    ),
    "candles": (
        "home",
        "candle candlestick lantern tealight-holder wax-melt incense-burner candelabra snuffer",
        "scented vanilla beeswax lavender advent sandalwood",
    ),
    "lighting": (
        "home",
        "floor-lamp pendant chandelier lampshade night-light wall-sconce light-chain spotlight",
        "dimmable opal warm-white filament crystal rattan",
    ),
    "bedding": (
        "home",
        "duvet pillowcase quilt blanket bedspread mattress-topper bolster throw",
        "percale down-filled satin quilted hypoallergenic patchwork",
    ),
    "knitwear": (
        "clothing",
        "cardigan pullover scarf beanie mittens poncho turtleneck leg-warmers",
        "merino cable-knit alpaca chunky mohair fair-isle",
    ),
    "shoes": (
        "clothing",
        "loafer sneaker ankle-boot sandal ballerina derby wedge slipper",
        "suede nubuck lace-up slip-on patent-leather crepe-sole",
    ),
    "jewellery": (
        "clothing",
        "necklace bracelet earrings brooch ring anklet cufflinks charm",
        "sterling gold-plated pearl gemstone filigree birthstone",
    ),
    "audio": (
        "electronics",
        "headphones loudspeaker turntable microphone soundbar amplifier earbuds radio",
        "noise-cancelling stereo hi-fi bluetooth studio vinyl",
    ),
    "photo": (
        "electronics",
        "tripod lens camera-bag flash-unit photo-printer lens-filter gimbal darkroom-kit",
        "wide-angle mirrorless macro instant telephoto analogue",
    ),
    "computing": (
        "electronics",
        "keyboard laptop-sleeve webcam usb-hub mouse memory-stick router graphics-tablet",
        "mechanical wireless ultra-fast compact gaming backlit",
    ),
}
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "grey", "pink", "brown", "orange")
BRAND_HEADS = ("Alder", "Birk", "Cor", "Dune", "Elm", "Fjord", "Grove", "Hale", "Isar", "Juno")
BRAND_TAILS = ("berg", "craft", "field", "haus", "line", "mark", "stone", "works")
BRANDS_PER_TOPIC = 6
COUNTRIES = ("DE", "GB", "FR", "NL", "US", "AT", "ES", "SE")
COUNTRY_SHARES = (0.30, 0.20, 0.15, 0.10, 0.10, 0.06, 0.05, 0.04)
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
GENDERS = ("f", "m", "x")


def vocabulary() -> list[tuple[str, list[str], list[str]]]:
    """Category, nouns and likes of each topic, in the order of TOPICS."""
    return [(category, nouns.split(), likes.split()) for category, nouns, likes in TOPICS.values()]
