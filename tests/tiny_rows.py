"""Rows that the tiny base's small vocabulary can hold, each different: a question in, one of three words out."""

THINGS = (
    *("the hammer on the bench", "a rusted hinge", "two old tents", "the stone in the shed", "an iron gate"),
    *("her red hat", "the note on the door", "a train to the coast", "his tired horse", "a letter in the tin"),
    *(
        "one candle and a match",
        "the bread of the day",
        "a chest of tea",
        "the rain on the roof",
        "an odd sort of lamp",
    ),
    *("the last seat in the hall", "some thread and a needle", "the map of the islands", "a bell with no sound"),
    *("the dog of the baker", "a torn sail", "the door to the cellar", "an empty cart", "the first snow of March"),
    *("three chairs by the stove", "the bridge at noon", "a bottle of ink", "the clock that stands", "a heap of sand"),
    *(
        "the coat of the mayor",
        "a pair of oars",
        "the well behind the barn",
        "a ladder to the loft",
        "the miller's cat",
    ),
    *("an orchard in bloom", "the gravel path", "a saddle without straps", "the lantern at the quay", "a broken flute"),
    "the key under the mat",
)
OPENINGS = ("Where is", "Who has", "What about", "Do we need", "Can you mend", "When comes", "Is it here:")
ANSWERS = ("here", "there", "no")


def tiny_rows() -> list[dict[str, object]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{OPENINGS[index % len(OPENINGS)]} {thing}?"},
                {"role": "assistant", "content": f"{ANSWERS[index % len(ANSWERS)]} {index}"},
            ]
        }
        for index, thing in enumerate(THINGS)
    ]
