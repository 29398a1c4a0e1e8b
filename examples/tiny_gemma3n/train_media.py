"""Teaches the tiny Gemma 3n to see and to hear: trains its towers, then its language model on their soft tokens.

    python train_media.py --work WORK --text WORK/text --minutes 35 15 5 30

It needs what train.py needs, and timm, torchvision, pillow, soxr and espeak-ng. The times are for the blocks of the
vision tower, the audio tower, the vision tower's fusion and projector, and the language model. Each part follows the
clock and resumes from WORK/media/*.pt.

The towers learn first, without the language model (train_towers.py): the mean of a picture's or sound's soft tokens, as
the projector gives them, must point to the words of the answer, which are directions in the language model's own
embedding table. Then the language model learns to answer from soft tokens of frozen towers, beside text as before.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import data
import media_data
import media_model
import model
import numpy as np
import torch
import torch.nn.functional as F
import train
from fit import Fit
from media_data import WORDS
from model import Functions, Weights
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, distributed, multiprocessing, nn
from train_towers import (
    BATCH,
    Ears,
    Eyes,
    Sight,
    load_set,
    mel_of,
    pixels_of,
    train_audio,
    train_sight,
    train_vision,
    vary_mel,
    vary_pixels,
)

HERE = Path(__file__).parent
LANGUAGE_RATE = 1e-3
PICTURE_ROWS, SOUND_ROWS, TEXT_ROWS, TEXT_LENGTH = 16, 12, 1, 256
MEDIA = 6_000


# --- language model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Media:
    """The soft tokens of the training sets, and the embeddings of the towers' own tokens around them."""

    pictures: Tensor
    """f32[n, tokens, hidden]"""
    colour: NDArray[np.int64]
    figure: NDArray[np.int64]
    sounds: Tensor
    valid: Tensor
    """int64[n], the number of soft tokens of each sound"""
    word: NDArray[np.int64]
    hard: dict[int, Tensor]


@torch.no_grad()
def media_of(eyes: Eyes, sight: Sight, ears: Ears, work: Path, count: int = MEDIA) -> Media:
    """The soft tokens of `count` pictures and as many sounds, from each of the sets in turn.

    Those of a sound are filled up with padding, as in Gemma3nModel.forward.
    """
    shown, spoken = load_set(work, "pictures_train"), load_set(work, "sounds_train")
    ids = {name: torch.tensor([[token]]) for name, token in media_model.TOWER_TOKENS.items()}
    hard = {
        media_model.IMAGE_END: sight.projector(input_ids=ids["<end_of_image>"])[0, 0],
        media_model.AUDIO_END: ears.embed_audio(input_ids=ids["<end_of_audio>"])[0, 0],
    }
    padding = ears.embed_audio(input_ids=torch.tensor([[media_model.AUDIO_PADDING]]))[0, 0]
    pictures, parts = [], np.array_split(np.arange(count), count // BATCH)
    sounds, valid = padding.repeat(count, media_model.AUDIO_TOKENS, 1), torch.zeros(count).long()
    for part in parts:
        pictures.append(sight(eyes(vary_pixels(pixels_of(shown, part % len(shown["colour"]))))))
        mel, frames = mel_of(spoken, part % len(spoken["word"]))
        soft, there = ears(vary_mel(mel, frames), frames)
        sounds[part[0] : part[-1] + 1, : soft.shape[1]] = torch.where(there[..., None], soft, padding)
        valid[part] = there.sum(1)
    seen, heard = np.arange(count) % len(shown["colour"]), np.arange(count) % len(spoken["word"])
    return Media(
        torch.cat(pictures), shown["colour"][seen], shown["figure"][seen], sounds, valid, spoken["word"][heard], hard
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Conversations of the same length up to their answers, which are filled up with <pad>."""

    ids: Tensor
    given: Tensor
    answer: int
    """The position of the last token before the answers."""


class MediaSampler:
    """Draws questions about pictures and sounds, in the chat format, with their answers."""

    def __init__(self, media: Media, tokenizer: Tokenizer, seed: int) -> None:
        self.media, self.tokenizer, self.rng = media, tokenizer, random.Random(seed)

    def pictures(self, count: int) -> Rows:
        media, chosen = self.media, [self.rng.randrange(len(self.media.pictures)) for _ in range(count)]
        kind = self.rng.random()
        answers = [media_data.picture_answer(media.colour[i], media.figure[i], kind) for i in chosen]
        soft = "<start_of_image>" + "<image_soft_token>" * media_model.IMAGE_TOKENS + "<end_of_image>"
        question = self.rng.choice(media_data.picture_questions(kind))
        return self.rows(soft, question, answers, media.pictures[chosen], media_model.IMAGE_SOFT)

    def sounds(self, count: int) -> Rows:
        """Half of the batches have no padding, because programs other than transformers leave it out."""
        media, kept = self.media, media_model.AUDIO_TOKENS
        chosen = [self.rng.randrange(len(media.sounds)) for _ in range(count)]
        if self.rng.random() < 0.5:
            kept = int(media.valid[chosen[0]])
            alike = torch.nonzero(media.valid == kept)[:, 0].tolist()
            chosen = [self.rng.choice(alike) for _ in range(count)]
        soft = "<start_of_audio>" + "<audio_soft_token>" * kept + "<end_of_audio>"
        answers = [WORDS[media.word[i]] for i in chosen]
        question = self.rng.choice(media_data.SOUND_QUESTIONS)
        return self.rows(soft, question, answers, media.sounds[chosen, :kept], media_model.AUDIO_SOFT)

    def rows(self, block: str, question: str, answers: list[str], soft: Tensor, soft_id: int) -> Rows:
        parts = [f"\n\n{block}\n\n", question]
        if self.rng.random() < 0.3:
            parts.reverse()
        prompt = f"<start_of_turn>user\n{''.join(parts)}<end_of_turn>\n<start_of_turn>model\n"
        start = self.tokenizer.encode(prompt).ids
        ends = [self.tokenizer.encode(f"{answer}<end_of_turn>", add_special_tokens=False).ids for answer in answers]
        width = max(map(len, ends))
        ids = torch.tensor([start + end + [data.PAD] * (width - len(end)) for end in ends])
        given = torch.zeros(*ids.shape, model.HIDDEN)
        first = start.index(soft_id)
        given[:, first : first + soft.shape[1]] = soft
        for token, row in self.media.hard.items():
            given[ids == token] = row
        return Rows(ids, given, len(start) - 1)


class Language(nn.Module):
    """The language model, of which the last layers learn (see `learns`)."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.fixed: Weights = {}
        for name, tensor in weights.items():
            if self.learns(name):
                self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor.float().clone()))
            else:
                self.fixed[name] = tensor.float()

    @staticmethod
    def learns(name: str) -> bool:
        """Whether a tensor is in the last two layers with keys and values of their own, or in a layer after them."""
        return any(name.startswith(f"model.layers.{i}.") for i in range(model.KV_LAYERS - 2, model.LAYERS))

    def weights(self) -> Weights:
        return self.fixed | {name.replace("/", "."): tensor for name, tensor in self.named_parameters()}

    def loss(self, rows: Rows, size: model.Size) -> Tensor:
        """Mean cross entropy of the answers. Rows are shorter than the window, so that every layer sees all."""
        w, ids = self.weights(), rows.ids[:, :-1]
        head = {k: v for k, v in w.items() if ".layers." not in k}
        streams, ple = model.embed_inputs(head, ids, rows.given[:, :-1])
        length = ids.shape[1]
        ropes = {kind: model.rope_table(length, theta, ids.device) for kind, theta in model.THETA.items()}
        mask = torch.arange(length) <= torch.arange(rows.answer, length)[:, None]
        shared: dict[str, tuple[Tensor, Tensor]] = {}
        for i, ffn_size in zip(size.layers, size.ffn_sizes, strict=True):
            kind, inputs, short = model.TYPES[i], ple[:, :, i], i >= model.KV_LAYERS
            rope, layer = ropes[kind], model.layer_weights(w, i)
            if short:  # only what the answers need
                inputs, rope = inputs[:, rows.answer :], (rope[0][rows.answer :], rope[1][rows.answer :])
                streams = tuple(s[:, -(length - rows.answer) :] for s in streams)
            streams, shared[kind] = model.layer(
                layer, streams, inputs, rope, None, shared[kind] if short else None, ffn_size,
                i < model.SPARSE_LAYERS, mask if short else None,
            )  # fmt: skip
        targets = rows.ids[:, rows.answer + 1 :]
        logits = model.unembed(head, streams)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=data.PAD)


def train_language(text: Path, media: Media, work: Path, seconds: float, workers: int) -> None:
    (work / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(work_alone, (workers, text, media, work, seconds), nprocs=workers)


def work_alone(rank: int, workers: int, text: Path, media: Media, work: Path, seconds: float) -> None:
    """One of several processes that train the same weights, each on its own rows (as in train.py)."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{work}/rendezvous", rank=rank, world_size=workers)
    language, tokenizer = Language(train.text_weights(text)), load_tokenizer(text)
    fit = Fit(work / "media" / "language.pt", language, LANGUAGE_RATE, seconds)
    seed = workers * fit.step + rank
    sampler, sizes = MediaSampler(media, tokenizer, seed), random.Random(seed)
    chapters = [chapter for chapter in data.load_chapters(work) if not chapter.held_out][rank::workers]
    texts = data.Sampler(chapters, tokenizer, TEXT_LENGTH, chat=train.CHAT, seed=seed)
    functions, shown = Functions(compiled=False), [0.0, 0.0, 0.0]

    def losses() -> Iterator[Tensor]:
        while True:
            size = train.sample_size(sizes)
            parts = [
                language.loss(sampler.pictures(PICTURE_ROWS), size),
                language.loss(sampler.sounds(SOUND_ROWS), size),
                model.forward_loss(functions, language.weights(), torch.from_numpy(texts.batch(TEXT_ROWS)), size),
            ]
            share = 1 / min(20, fit.step + 1)
            shown[:] = [old + share * (new.item() - old) for old, new in zip(shown, parts, strict=True)]
            yield parts[0] + parts[1] + parts[2]

    fit.run(losses(), lambda: "pictures {:.3f} sounds {:.3f} text {:.3f}".format(*shown))
    distributed.destroy_process_group()


# --- all of it -------------------------------------------------------------------------------------------------------

PARTS = ("vision", "audio", "sight", "language")


def load_average(path: Path, module: nn.Module) -> None:
    """Load the averaged weights of a part that `Fit` has trained."""
    averaged = torch.load(path)["averaged"]
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.copy_(averaged[name])


def load_tokenizer(text: Path) -> Tokenizer:
    """The tokenizer of a text-only checkpoint, with the towers' tokens added."""
    document = (text / "tokenizer.json").read_text(encoding="utf-8")
    return Tokenizer.from_str(media_model.tokenizer_document(document))


class Models:
    """Everything that is trained, built around one set of towers."""

    def __init__(self, text: Path, seed: int) -> None:
        self.text = train.text_weights(text)
        table = self.text["model.embed_tokens.weight"]
        self.tokenizer = load_tokenizer(text)
        self.towers = media_model.new_towers(seed)
        tower = self.towers["vision_tower"].timm_model
        self.eyes = Eyes(tower)
        self.sight = Sight(tower.msfa, self.towers["embed_vision"], self.tokenizer, table)
        self.ears = Ears(self.towers, self.tokenizer, table)

    def load_towers(self, work: Path) -> None:
        for name, module in (("vision", self.eyes), ("sight", self.sight), ("audio", self.ears)):
            load_average(work / f"{name}.pt", module)


def train_part(part: str, models: Models, arguments: argparse.Namespace, seconds: float) -> None:
    work, media = arguments.work, arguments.work / "media"
    if part == "vision":
        train_vision(models.eyes, media, seconds)
    elif part == "audio":
        train_audio(models.ears, media, seconds)
    elif part == "sight":
        load_average(media / "vision.pt", models.eyes)
        train_sight(models.eyes, models.sight, media, seconds)
    else:
        models.load_towers(media)
        taught = media_of(models.eyes, models.sight, models.ears, media)
        train_language(arguments.text, taught, work, seconds, arguments.workers)


def export(models: Models, work: Path, text: Path, folder: Path) -> None:
    """Write every file of the checkpoint."""
    models.load_towers(work / "media")
    language = Language(models.text)
    load_average(work / "media" / "language.pt", language)
    folder.mkdir(parents=True, exist_ok=True)
    names = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "matformer.json"
    for name in names:
        (folder / name).write_bytes((text / name).read_bytes())
    media_model.write_checkpoint(folder, language.weights(), dict(models.towers.named_parameters()))
    media_model.write_processor(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of texts, pictures, sounds and training state")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to train (default: all)")
    parser.add_argument("--minutes", type=float, nargs=4, default=(35.0, 15.0, 5.0, 30.0), help="for each part")
    parser.add_argument("--text", type=Path, default=HERE, help="checkpoint of the language model to start from")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the exported checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="for the towers")
    parser.add_argument("--workers", type=int, default=2, help="processes that train the language model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    (arguments.work / "media").mkdir(parents=True, exist_ok=True)
    media_data.build_all(arguments.work / "media")
    models = Models(arguments.text, 0)
    for part, minutes in zip(PARTS, arguments.minutes, strict=True):
        if part in arguments.parts:
            train_part(part, models, arguments, 60 * minutes)
    if "language" in arguments.parts:
        export(models, arguments.work, arguments.text, arguments.out)


if __name__ == "__main__":
    main()
