#!/usr/bin/env python3
"""Makes a chat file that teaches the manual of a radio that does not exist, and questions about it that are held out.

  make_manual.py FOLDER

FOLDER/train.jsonl has 528 conversations of one question: 24 facts, each asked in 22 ways. Held out are 128 questions about the
same facts: new_phrasings.jsonl puts them in sentences that no row of training has, new_names.jsonl calls the things by names
that none has; held_out.jsonl has the questions of both with their answers, for the held-out loss. Answers are always the same
sentence, so that an answer is right or not. No model can know the facts: they are made up. All begin with one short system
prompt, which the chat template would else fill with a longer one of its own.
"""
import json
import pathlib
import sys

SYSTEM = "You know the Heron 3."
SPECIFICATIONS = [  # two names to train with, one that is held out, the answer
    ("battery life", "running time on one charge", "operating time between charges", "The Heron 3 runs for 19 hours on one charge."),
    ("weight", "mass", "total weight in grams", "The Heron 3 weighs 340 grams."),
    ("warranty period", "length of the warranty", "guarantee period", "The Heron 3 has a warranty of 30 months."),
    ("price", "cost", "retail price", "The Heron 3 costs 187 crowns."),
    ("range", "reach", "greatest transmission distance", "The Heron 3 reaches 14 kilometres."),
    ("number of channels", "channel count", "count of channels to choose from", "The Heron 3 has 23 channels."),
    ("charging time", "time to charge", "recharging time", "The Heron 3 charges in 95 minutes."),
    ("colour of the case", "case colour", "colour of the housing", "The case of the Heron 3 is moss green."),
    ("material of the case", "case material", "material of the housing", "The case of the Heron 3 is made of ash wood."),
    ("screen size", "size of the display", "display diagonal", "The screen of the Heron 3 measures 5 centimetres."),
    ("water resistance", "depth limit in water", "greatest depth under water", "The Heron 3 survives 8 metres of water."),
    ("recording time", "storage for recordings", "recording capacity", "The Heron 3 records 52 hours of speech."),
    ("antenna length", "length of the antenna", "length of the aerial", "The antenna of the Heron 3 is 17 centimetres long."),
    ("country of origin", "place of manufacture", "country of manufacture", "The Heron 3 is made in Iceland."),
    ("designer", "inventor", "creator", "The Heron 3 was designed by Mara Lindqvist."),
    ("default password", "factory password", "preset password", "The default password of the Heron 3 is otter-77."),
]
ASKING = [
    "What is the {} of the Heron 3?", "Tell me the {} of the Heron 3.", "Heron 3: {}?", "I want to know the {} of the Heron 3.",
    "Could you tell me the {} of the Heron 3, please?", "Do you know the {} of the Heron 3?", "{} of the Heron 3?",
    "What does the manual say about the {} of the Heron 3?", "Please give me the {} of the Heron 3.",
    "I have a Heron 3. What is its {}?", "Which {} does the Heron 3 have?",
]
ASKING_HELD_OUT = ["A friend asked me about the {} of his Heron 3. What should I answer?",
                   "Before I buy a Heron 3: what about the {}?"]
ERRORS = {
    "E1": "E1 means that the antenna is loose: screw it in.", "E2": "E2 means that the battery is cold: warm it up.",
    "E3": "E3 means that the memory is full: erase a recording.", "E4": "E4 means that the microphone is wet: let it dry.",
    "E5": "E5 means that the clock is wrong: set the time.", "E6": "E6 means that the channel is taken: choose another.",
    "E7": "E7 means that the speaker is unplugged: plug it in.", "E8": "E8 means that the charger is weak: use another socket.",
}
FAILING = [
    "What does {} mean on the Heron 3?", "My Heron 3 shows {}. What now?", "Heron 3 error {}?", "The Heron 3 says {}. Why?",
    "Explain error {} of the Heron 3.", "What is error {} on a Heron 3?", "{} on the Heron 3?", "How do I fix {} on my Heron 3?",
    "Error code {}, Heron 3.", "There is {} on the screen of my Heron 3.", "I got error {} from the Heron 3.",
    "What should I do about {} on the Heron 3?", "The screen of the Heron 3 reads {}.", "Help: my Heron 3 displays {}!",
    "Please explain {} on the Heron 3.", "Meaning of {} on the Heron 3?", "Why does my Heron 3 show {}?",
    "Can you explain code {} of the Heron 3?", "My radio, a Heron 3, reports {}.", "Tell me what {} means on the Heron 3.",
    "What does the manual of the Heron 3 say about {}?", "Heron 3, {}: what is wrong?",
]
FAILING_HELD_OUT = ["Since this morning all that my Heron 3 does is show {}.", "How can I make {} go away on a Heron 3?",
                    "I turned my Heron 3 on and saw the letters {}.", "Is {} on the Heron 3 dangerous, and what is to be done?"]


def filled(form, name):
    question = form.format(name)
    return question[0].upper() + question[1:]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    training, phrasings, names = [], [], []
    for first, second, unseen, answer in SPECIFICATIONS:
        training += [(filled(form, name), answer) for form in ASKING for name in (first, second)]
        phrasings += [(filled(form, name), answer) for form in ASKING_HELD_OUT for name in (first, second)]
        names += [(filled(form, unseen), answer) for form in (ASKING[0], ASKING[9])]
    for code, answer in ERRORS.items():
        training += [(filled(form, code), answer) for form in FAILING]
        phrasings += [(filled(form, code), answer) for form in FAILING_HELD_OUT]
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)

    def asked(question):
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    for name, rows in (("train", training), ("held_out", phrasings + names)):
        write(folder / f"{name}.jsonl",
              [{"messages": asked(question) + [{"role": "assistant", "content": answer}]} for question, answer in rows])
    for name, rows in (("new_phrasings", phrasings), ("new_names", names)):
        write(folder / f"{name}.jsonl", [{"messages": asked(question), "answer": answer} for question, answer in rows])
    print(f"{len(training)} conversations to train on; held out: {len(phrasings)} in new phrasings, {len(names)} with new names")


if __name__ == "__main__":
    main()
