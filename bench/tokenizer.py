#!/usr/bin/env python3
"""Baton's tokenizer beside Hugging Face's `tokenizers` on the same texts, one thread each. Needs a build, and the package.

    bench/tokenizer.py MODEL_DIR TEXT.txt...

Timed, in processor time: text -> ids, no special tokens added; Hugging Face's from a Python str (`encode`, and
`encode_batch_fast`, which leaves out the offsets; the faster counts), Baton's inside of `baton-bench tokenize --pipe`.
Outside: loading, slicing, the pipe. Both take turns, round by round, on slices that do not overlap, after 500 kB of the
same text, so that Hugging Face's cache of words is warm; Baton has none. Every slice's ids are compared. Prints CSV: a
row for each text and size, with the median over slices and rounds.
"""
import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import tokenizers  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1024, 16384, 225280)
N_WARM_BYTES, N_SLICES = 500_000, 20


class Baton:
    def __init__(self, program, model):
        self.process = subprocess.Popen([program, "tokenize", "--pipe", "--model", model], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def encode(self, text):
        """(seconds, ids)"""
        data = text.encode()
        self.process.stdin.write(b"%d\n" % len(data) + data)
        self.process.stdin.flush()
        ns, *ids = self.process.stdout.readline().split()
        return int(ns) / 1e9, list(map(int, ids))


class HuggingFace:
    def __init__(self, model):
        self.tokenizer = tokenizers.Tokenizer.from_file(os.path.join(model, "tokenizer.json"))

    def encode(self, text):
        began = time.thread_time()
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return time.thread_time() - began, ids

    def encode_fast(self, text):
        began = time.thread_time()
        ids = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return time.thread_time() - began, ids


def slices(data, size):
    starts = range(N_WARM_BYTES, len(data) - size + 1, size)
    return [data[at:at + size].decode("utf-8", "ignore") for at in list(starts)[:N_SLICES]]


def compare(name, texts, ways, rounds):
    """{way: median of MB/s}, and whether all ids are the same."""
    speeds, same = {way: [] for way in ways}, True
    for _ in range(rounds):
        ids = {}
        for way, encode in ways.items():
            answers = [encode(text) for text in texts]
            ids[way] = [ids for _, ids in answers]
            speeds[way] += [len(text.encode()) / seconds / 1e6 for text, (seconds, _) in zip(texts, answers)]
        same = same and all(other == ids["baton"] for other in ids.values())
    return {way: statistics.median(figures) for way, figures in speeds.items()}, same


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--program", default=str(ROOT / "build" / "bin" / "baton-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=SIZES)
    args = parser.parse_args()
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout
    baton, hf = Baton(args.program, args.model), HuggingFace(args.model)
    ways = {"baton": baton.encode, "hf": hf.encode, "hf_fast": hf.encode_fast}
    is_equal = True
    print("commit,tokenizers,text,bytes,slices,baton_mb_s,hf_mb_s,hf_fast_mb_s,ratio,same_ids", flush=True)
    for path in args.texts:
        data = Path(path).read_bytes()
        for encode in ways.values():
            encode(data[:N_WARM_BYTES].decode("utf-8", "ignore"))
        for size in args.sizes:
            texts = slices(data, size)
            if not texts:
                sys.exit(f"{path} has less than {N_WARM_BYTES + size} bytes")
            mb_s, same = compare(path, texts, ways, args.rounds)
            ratio = mb_s["baton"] / max(mb_s["hf"], mb_s["hf_fast"])
            is_equal = is_equal and same
            print(f"{commit.strip()},{tokenizers.__version__},{Path(path).stem},{size},{len(texts)},{mb_s['baton']:.1f},"
                  f"{mb_s['hf']:.1f},{mb_s['hf_fast']:.1f},{ratio:.1f},{'yes' if same else 'NO'}", flush=True)
    sys.exit(0 if is_equal else "ids differ")


if __name__ == "__main__":
    main()
