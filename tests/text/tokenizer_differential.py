#!/usr/bin/env python3
"""Compares Qiao's token ids with the tokenizers and sentencepiece wheels, over thousands of texts a vocabulary.

  tokenizer_differential.py --tool build/bin/tokenize_lines FILE…

FILE is a .gguf (an oracle is built from its tokens, merges and scores) or a tokenizer.json (the tokenizers wheel reads
it). Needs the wheels tokenizers, sentencepiece, protobuf, gguf. Exits 1 where ids differ.
"""

import argparse
import base64
import json
import random
import subprocess
import sys
import unicodedata

WORDS = """the of and to in is that it was for on are as with his they at be this from have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over did
down only way find use may water long little very after words called just where most know get through back much before
go good new write our used me man too any day same right look think also around another came come work three word must
because does part even place well such here take why things help put years different away again off went old number
def return import class self print lambda None True function const let var int float void std vector string public
don't can't I'm we'll they've it's you're HE'S WON'T O'Neill 's 't 'll""".split()
SCRIPTS = {
    "latin": "àéîõüçñßøåæœÀÉÎÕÜÇÑŽŠŁđğışœfiſÅİıǅǈ",
    "greek": "αβγδεζηθικλμνξοπρστυφχψωΑΒΓΔΩάέήίόύώϊΰ",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЁїєґ",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئةىًٌٍَُِّْ٠١٢٣",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשתךםןףץְֱֲִֵֶַָֹּׁׂ",
    "devanagari": "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहािीुूेैोौ्ंः१२३",
    "bengali": "অআইঈউকখগঘচছজটডতথদধনপবভমযরলশষসহািীুূেৈোৌ্ং",
    "thai": "กขคงจฉชซญดตถทธนบปผพฟมยรลวศสหอะาำิีึืุูเแโใไ่้๊๋์๑๒๓",
    "khmer": "កខគឃងចឆជឈញដឋឌណតថទធនបផពភមយរលវសហអាិីឹឺុូើៅំះ្",
    "tamil": "அஆஇஈஉகஙசஞடணதநபமயரலவழளறனாிீுூெேைொோ்",
    "han": "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生𠀀𪚥㐀豈",
    "kana": "あいうえおかきくけこさしすせそたちつてとアイウエオカキクケコサシスセソッャュョー゛゜ｱｲｳﾞ",
    "hangul": "가나다라마바사아자차카타파하각난달람밥삿한국어말씀각ㄱㄴㅏ",
    "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "ethiopic": "ሀለሐመሠረሰሸቀበተኀነአከወዐዘየደገጠጰጸፀፈ፩፪",
}
EMOJI = ["😀", "🚀", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "🏳️‍🌈", "✅", "1️⃣", "🤷🏾‍♂️", "™", "©", "♥", "🦙", "😶‍🌫️"]
SPACES = [" ", "  ", "   ", "    ", "\t", "\n", "\r\n", "\n\n", " \n", "\n ", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028",
          "\u0085", "\u180e", "\ufeff", "\x0b", "\x0c", "\u202f", "\u200d", "\x1c", "        ", "\n\n\n", "\t\t"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["...", "—", "–", "…", "“", "”", "‘", "’", "«", "»", "、", "。", "！",
               "？", "·", "§", "¶", "€", "£", "¥", "¢", "±", "×", "÷", "→", "≤", "∑", "¬", "´", "¨", "¸", "++", "==", "->", "::", "/*", "*/",
               "//", "$$", "##", "[[", "]]", "###", "\\n", "<br>", "</p>", "&amp;"]
NUMBERS = ["0", "7", "12", "123", "1234", "12345", "123456", "1234567", "3.14", "1,000,000", "2026-10-01", "0xFF", "1e-9", "½", "²", "³",
           "①", "Ⅷ", "٣٤٥", "१२३४", "12²", "x²", "2nd", "100%", "$5", "1st", "007", "1.2.3.4"]
CODE = ["def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "#include <vector>\n",
        "SELECT * FROM t WHERE id = 3;", "<div class=\"a\">text</div>", "{\"key\": [1, 2.5, null]}", "x=>x*2", "if(a&&b||!c){}",
        "https://example.com/a?b=c&d=e#f", "user@example.com", "C:\\Windows\\System32", "\\frac{a}{b}", "camelCaseName", "snake_case_name",
        "CONSTANT_NAME", "XMLHttpRequest", "é̂ combining", "ﬁ ligature", "ｆｕｌｌ ｗｉｄｔｈ", "Ⅻ", "№5", "℡", "㎏", "ﷺ", "Å Å", "ñ ñ", "한국 한국"]
NEW = [chr(c) for c in (0x1C89, 0x1C8A, 0xA7CB, 0xA7DA, 0x31350, 0x2EBF0, 0x10D40, 0x1E4D0, 0x1E4F0, 0x1FAE8, 0x1CC00, 0x11F50, 0x897)]


def texts(count, seed, specials, broken):
    r = random.Random(seed)
    letters = {name: list(chars) for name, chars in SCRIPTS.items()}

    def word():
        kind = r.random()
        if kind < 0.45:
            w = r.choice(WORDS)
            return r.choice([w, w, w, w.capitalize(), w.upper()])
        if kind < 0.65:
            pool = letters[r.choice(list(letters))]
            return "".join(r.choice(pool) for _ in range(r.randint(1, 8)))
        if kind < 0.72:
            return r.choice(NUMBERS)
        if kind < 0.80:
            return r.choice(PUNCTUATION) * r.choice([1, 1, 1, 2, 3])
        if kind < 0.85:
            return r.choice(EMOJI)
        if kind < 0.89:
            return r.choice(CODE)
        if kind < 0.92:
            return "".join(chr(r.choice([r.randint(0x20, 0x7E), r.randint(0xA0, 0x24F)])) for _ in range(r.randint(1, 12)))
        if kind < 0.94:
            while True:
                c = r.randint(1, 0x10FFFF)
                if not 0xD800 <= c <= 0xDFFF:
                    return chr(c)
        if kind < 0.95:
            return r.choice(NEW) * r.randint(1, 3)
        if kind < 0.97:
            return r.choice("aA1 .\n-=é的😀_") * r.randint(1, 40)
        if specials and kind < 0.99:
            return r.choice(specials)
        return "".join(r.choice("ab'sS tT\n 1.,éß的") for _ in range(r.randint(1, 20)))

    out = ["", " ", "  ", "a", " a", "\n", "<", "▁", "▁▁a", " ▁ ", "\x00", "a\x00b", "'", "''s", "I'ſ", "'S", "İ", "ǅ"]
    while len(out) < count:
        parts = []
        for _ in range(r.randint(1, 14)):
            parts.append(word())
            gap = r.random()
            parts.append(" " if gap < 0.6 else "" if gap < 0.8 else r.choice(SPACES) * r.choice([1, 1, 1, 2, 5]))
        text = "".join(parts)
        if r.random() < 0.05:
            text = unicodedata.normalize(r.choice(["NFD", "NFKC"]), text)
        out.append(text)
    data = [t.encode("utf-8") for t in out]
    if broken:
        for _ in range(broken):
            b = bytearray(r.choice(data) + b"x")
            for _ in range(r.randint(1, 4)):
                b[r.randrange(len(b))] = r.randint(0x80, 0xFF)
            data.append(bytes(b))
    return data


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TIKTOKEN = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def published_pre_tokenizer(pre):
    """The pre_tokenizer of the model's own tokenizer.json."""
    from tokenizers import Regex, pre_tokenizers as P
    bytes_only = P.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_words = P.ByteLevel(add_prefix_space=False, use_regex=True)
    split = lambda pattern: P.Split(Regex(pattern), "isolated")
    if pre in ("llama-bpe", "dbrx", "smaug-bpe"):
        return P.Sequence([split(TIKTOKEN % r"\p{N}{1,3}"), bytes_only])
    if pre in ("qwen2", "stablelm2"):
        return P.Sequence([split(TIKTOKEN % r"\p{N}"), bytes_only])
    if pre == "qwen35":
        pattern = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        return P.Sequence([split(pattern), bytes_only])
    if pre in ("gpt-2", "mpt", "olmo", "gpt-neox"):
        return bytes_words
    if pre in ("starcoder", "refact", "command-r", "smollm"):
        return P.Sequence([P.Digits(individual_digits=True), bytes_words])
    if pre == "falcon":
        return P.Sequence([P.Punctuation("contiguous"), bytes_words, P.Digits(individual_digits=False), split("[0-9][0-9][0-9]")])
    if pre == "deepseek-coder":
        return P.Sequence([split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), P.Digits(individual_digits=True), bytes_only])
    if pre == "deepseek-llm":
        letters = ("A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼ"
                   "ιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")
        return P.Sequence([split("[\r\n]"), split(r"\s?[" + letters + "]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
                           split("[一-龥ࠀ-一가-퟿]+"), P.Digits(individual_digits=False), bytes_only])
    return None


class Oracle:
    """encode(bytes of UTF-8) -> ids, or None where the wheel cannot say."""

    def __init__(self, encode, specials=(), lossless=True, keeps_bytes=None):
        self.encode, self.specials, self.lossless = encode, list(specials), lossless  # lossless: decoding gives the text
        self.keeps_bytes = lossless if keeps_bytes is None else keeps_bytes  # broken bytes are not U+FFFD


def from_tokenizer(tokenizer, specials, lossless, keeps_bytes=None):
    encode = lambda data: tokenizer.encode(data.decode("utf-8"), add_special_tokens=False).ids
    return Oracle(encode, specials, lossless, keeps_bytes)


def gguf_oracles(path):
    import gguf
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    fields = gguf.GGUFReader(path).fields
    get = lambda key, default=None: fields["tokenizer.ggml." + key].contents() if "tokenizer.ggml." + key in fields else default
    model, pre = get("model"), get("pre")
    tokens, types = get("tokens"), get("token_type")
    ids = {t: i for i, t in enumerate(tokens)}
    added = [t for t, k in zip(tokens, types) if k in (2, 3, 4)]
    if pre is None and model == "gpt2":
        pre = "gpt-neox" if "neox" in path else None
    if model in ("gpt2", "gemma4"):
        escaped = model == "gemma4"
        if not escaped and published_pre_tokenizer(pre) is None:
            return
        merges = [tuple(m.split(" ", 1)) if m[0] != " " else (" ", m[2:]) for m in get("merges")]
        merges = [m for m in merges if m[0] in ids and m[1] in ids and m[0] + m[1] in ids]
        bpe = models.BPE(ids, merges, ignore_merges=pre in ("llama-bpe", "tekken", "youtu"), byte_fallback=escaped,
                         unk_token="<unk>" if escaped else None, fuse_unk=escaped)
        tokenizer = Tokenizer(bpe)
        if escaped:
            tokenizer.normalizer = normalizers.Replace(" ", "▁")
        else:
            tokenizer.pre_tokenizer = published_pre_tokenizer(pre)
        tokenizer.add_tokens([AddedToken(t, special=k != 4, normalized="▁" in t and k == 4) for t, k in zip(tokens, types) if k in (2, 3, 4)])
        # Gemma 4's merges of newlines are not in the file: texts with runs of them are left out.
        alphabet = all(c in ids for c in pre_tokenizers.ByteLevel.alphabet())
        oracle = from_tokenizer(tokenizer, added + ["▁"] if escaped else added, alphabet or escaped, True)
        if escaped:
            encode = oracle.encode
            oracle.encode = lambda data: None if b"\n" in data else encode(data)
        yield "tokenizers", oracle
    elif model in ("llama", "t5"):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2 as pb
        kind = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}
        proto = pb.ModelProto()
        for t, s, k in zip(tokens, get("scores"), types):
            proto.pieces.add(piece=t, score=s, type=kind[k])
        unknown = [i for i, k in enumerate(types) if k == 2]
        for i in unknown[1:]:
            proto.pieces[i].type = 3  # the wheel wants exactly one
        proto.trainer_spec.model_type = 2 if model == "llama" else 1
        proto.trainer_spec.byte_fallback = sum(k == 6 for k in types) == 256
        proto.trainer_spec.unk_id = unknown[0]
        proto.trainer_spec.unk_piece = tokens[unknown[0]]
        proto.normalizer_spec.add_dummy_prefix = bool(get("add_space_prefix", True))
        proto.normalizer_spec.remove_extra_whitespaces = bool(get("remove_extra_whitespaces", model == "t5"))
        proto.normalizer_spec.escape_whitespaces = True
        proto.normalizer_spec.precompiled_charsmap = bytes(get("precompiled_charsmap", []))
        sp = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        # The wheel does not look for special tokens, nor cut at user-defined ones before it adds its prefix.
        marked = [t for t in added if "▁" not in t]
        encode = lambda data: None if any(t in data.decode("utf-8") for t in marked) and get("add_space_prefix", True) else sp.encode(data.decode("utf-8"))
        control = [t for t, k in zip(tokens, types) if k in (2, 3)]
        if not get("add_space_prefix", True):
            encode = lambda data: None if any(t in data.decode("utf-8") for t in control) else sp.encode(data.decode("utf-8"))
        yield "sentencepiece", Oracle(encode, [t for t in added if t not in control][:50] + ["▁"], sum(k == 6 for k in types) == 256)
        if model == "t5":
            vocab = list(zip(tokens, get("scores")))
            tokenizer = Tokenizer(models.Unigram(vocab, unknown[0], False))
            n = [normalizers.Precompiled(bytes(get("precompiled_charsmap")))] if get("precompiled_charsmap") else []
            n += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
            tokenizer.normalizer = normalizers.Sequence(n)
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
            bad = set(control)
            yield "tokenizers (other normalizer)", Oracle(
                lambda data: None if any(t in data.decode("utf-8") for t in bad) else tokenizer.encode(data.decode("utf-8"), add_special_tokens=False).ids,
                [], False)
    elif model == "bert":
        special = {t for t, k in zip(tokens, types) if k == 3}
        vocab = {(t if t in special else t[1:] if t.startswith("▁") else "##" + t): i for i, t in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.add_special_tokens(sorted(special))
        yield "tokenizers", from_tokenizer(tokenizer, special, False)


def json_oracles(path):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(path)
    spec = json.load(open(path))
    text = json.dumps(spec.get("pre_tokenizer")) + json.dumps(spec.get("normalizer"))
    lossless = False
    if '"ByteLevel"' in text and not spec.get("normalizer"):
        lossless = "add_prefix_space\": true" not in text
    keeps_bytes = '"ByteLevel"' in text or spec["model"].get("byte_fallback", False)
    yield "tokenizers", from_tokenizer(tokenizer, [t["content"] for t in spec.get("added_tokens", [])], lossless, keeps_bytes)


def run(tool, path, data, *flags):
    lines = b"".join(base64.b64encode(d) + b"\n" for d in data)
    result = subprocess.run([tool, path, *flags], input=lines, capture_output=True)
    if result.returncode != 0:
        raise SystemExit(f"{path}: {result.stderr.decode()}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=3, help="differences to print of each file")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    failed = False
    for path in options.files:
        oracles = list(gguf_oracles(path) if path.endswith(".gguf") else json_oracles(path))
        if not oracles:
            print(f"{path}: no oracle")
        for name, oracle in oracles:
            data = texts(options.count, options.seed, oracle.specials, options.count // 20)
            answers = run(options.tool, path, data)
            compared = different = lost = 0
            for text, answer in zip(data, answers):
                got = base64.b64decode(answer["text"])
                try:
                    valid = text.decode("utf-8") is not None
                except UnicodeDecodeError:
                    valid = False
                if valid:
                    asked = text
                elif oracle.keeps_bytes:
                    asked = None  # the wheels take no broken text: only the way back is checked
                else:
                    asked = text.decode("utf-8", "replace").encode("utf-8")
                expected = oracle.encode(asked) if asked is not None else None
                if oracle.lossless and not any(s.encode() in text for s in oracle.specials) and got != text:
                    lost += 1
                    if lost <= options.show:
                        print("  lost", text, got)
                if expected is None:
                    continue
                compared += 1
                if answer["ids"] != expected:
                    different += 1
                    if different <= options.show:
                        print("  text", repr(asked.decode("utf-8")), "\n  want", expected, "\n  got ", answer["ids"])
            failed |= (different > 0 or lost > 0) and "other" not in name
            print(f"{path.rsplit('/', 2)[-2]}/{path.rsplit('/', 1)[-1]}: {name}: {compared} compared, {different} differ, {lost} lost on the way back")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
