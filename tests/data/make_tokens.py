"""Makes tokens_*.json: what independent tokenizers say about the corpus of tests/common/corpus.rs.

llama_like.json is a SentencePiece BPE vocabulary with Llama 2's settings (a space in front, byte fallback), trained on
that corpus, in which every seventh long piece was put out of use.

    TALLOW_CORPUS=lines.json cargo test --test real tokenizer the_corpus
    python3 -m pip install gguf tokenizers sentencepiece protobuf
    python3 tests/data/make_tokens.py lines.json SMOLLM2.gguf GEMMA3.gguf tests/data
"""

import hashlib
import json
import sys
from pathlib import Path

from gguf import GGUFReader

NUM_SHOWN = 200


def contents(reader, key):
    return reader.fields["tokenizer.ggml." + key].contents()


def smollm2(reader):
    """SmolLM2's published pipeline: Digits(individual), ByteLevel, BPE; control tokens left as text."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    vocab = {token: index for index, token in enumerate(contents(reader, "tokens"))}
    merges = [tuple(merge.split(" ")) for merge in contents(reader, "merges")]
    tokenizer = Tokenizer(BPE(vocab, merges))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return lambda line: tokenizer.encode(line).ids


def llama_like(lines, path):
    """Trains the vocabulary, writes it down, and encodes with it."""
    import io
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as pb

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="bpe", vocab_size=3000, byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True, num_threads=1,
        max_sentence_length=1 << 16, minloglevel=2,
    )
    model = pb.ModelProto()
    model.ParseFromString(out.getvalue())
    for index, piece in enumerate(model.pieces):
        if piece.type == 1 and len(piece.piece) > 2 and index % 7 == 0:
            piece.type = 5
    rows = [json.dumps([p.piece, p.score, p.type], ensure_ascii=False) for p in model.pieces]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return lambda line: processor.encode(line)


def sentencepiece_model(reader):
    """A SentencePiece model of a file's pieces and scores. GGUF keeps user-defined pieces with plain spaces."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as pb

    # GGUF's token types are SentencePiece's, which has no second unknown: exactly one piece must be it.
    unknown = contents(reader, "unknown_token_id")
    model = pb.ModelProto()
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = unknown
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = contents(reader, "add_space_prefix")
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    rows = zip(contents(reader, "tokens"), contents(reader, "scores"), contents(reader, "token_type"))
    for index, (token, score, kind) in enumerate(rows):
        piece = model.pieces.add()
        piece.piece = token.replace(" ", "\u2581")
        piece.score = score
        piece.type = 2 if index == unknown else kind
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return lambda line: processor.encode(line)


def write(path, encode, lines):
    ids = [list(encode(line)) for line in lines]
    text = "".join(" ".join(map(str, line)) + "\n" for line in ids)
    shown = ",\n".join(json.dumps(line, separators=(",", ":")) for line in ids[:NUM_SHOWN])
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f'{{"num_lines": {len(lines)},\n"sha256": "{digest}",\n"ids": [\n{shown}\n]}}\n')
    return ids


def main():
    corpus, smollm2_file, gemma3_file, out = sys.argv[1:]
    lines = json.loads(Path(corpus).read_text())
    write(Path(out) / "tokens_llama_like.json", llama_like(lines, Path(out) / "llama_like.json"), lines)
    write(Path(out) / "tokens_smollm2.json", smollm2(GGUFReader(smollm2_file)), lines)
    write(Path(out) / "tokens_gemma3.json", sentencepiece_model(GGUFReader(gemma3_file)), lines)


if __name__ == "__main__":
    main()
