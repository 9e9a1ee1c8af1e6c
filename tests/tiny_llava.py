"""Tiny vision-language models, made on the spot from the real classes of transformers, with random weights."""

from pathlib import Path

SENTENCE = (
    "a an the of on in and with red green blue white dark light fox apple house tree man woman picture painting style "
    "image shows stands sits detailed describe this its very manner given caption"
)
CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 16, "patch_size": 8}


def tiny_tokenizer():
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split, Whitespace
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "USER", "ASSISTANT", ":", ".", ",", *SENTENCE.split()]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Sequence([Split(Regex("<image>"), "isolated"), Whitespace()])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)


def tiny_llama(words: int):
    from transformers import LlamaConfig

    # At the usual initializer_range of 0.02 all words are equally likely, and every image gets the same.
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "initializer_range": 0.6}
    return LlamaConfig(vocab_size=words, num_key_value_heads=2, max_position_embeddings=512, **SMALL, **special)


def save(model, processor, folder: Path) -> Path:
    """Write both, with weights by which the words depend on the image."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("projector", "connector", "vision")):
                weight.mul_(6)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_tiny_llava(folder: Path, *, chat: bool = True) -> Path:
    """A LLaVA-1.5 as its authors ship it: config, processor, tokenizer, safetensors. About 60 kB."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=tiny_llama(len(tokenizer)),
        image_token_index=4,
        image_token_id=4,
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT if chat else None,
    )
    return save(LlavaForConditionalGeneration(config), processor, folder)


def write_tiny_idefics3(folder: Path) -> Path:
    """A model of another family, whose processor wants its images nested and cuts them into tiles."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    torch.manual_seed(4)
    images = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, tiny_tokenizer(), image_seq_len=1, chat_template=CHAT)
    config = Idefics3Config(
        vision_config=VISION,
        text_config=tiny_llama(len(processor.tokenizer)),
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=3,
    )
    return save(Idefics3ForConditionalGeneration(config), processor, folder)
