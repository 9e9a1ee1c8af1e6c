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


def tiny_tokenizer():
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split, Whitespace
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "USER", "ASSISTANT", ":", ".", ",", *SENTENCE.split()]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Sequence([Split(Regex("<image>"), "isolated"), Whitespace()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    ), names


def write_tiny_llava(folder: Path, *, next_kind: bool = False, chat: bool = True, seed: int = 3) -> Path:
    """A LLaVA-1.5 (or LLaVA-Next) as its authors ship it: config, processor, tokenizer, safetensors. About 60 kB."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        LlavaProcessor,
    )

    torch.manual_seed(seed)
    tokenizer, names = tiny_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=0.6,  # at the usual 0.02 all words are equally likely and every picture gets the same
    )
    kind, config_kind = (
        (LlavaNextForConditionalGeneration, LlavaNextConfig)
        if next_kind
        else (LlavaForConditionalGeneration, LlavaConfig)
    )
    config = config_kind(
        vision_config=vision, text_config=text, image_token_index=4, image_token_id=4, vision_feature_layer=-1
    )
    if next_kind:
        config.image_grid_pinpoints = [[16, 32], [32, 16]]
    model = kind(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "projector" in name or "vision" in name:
                weight.mul_(6)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 3
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    if next_kind:
        images = LlavaNextImageProcessor(
            size={"shortest_edge": 16}, crop_size=size, image_grid_pinpoints=[[16, 32], [32, 16]]
        )
    else:
        images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    processor = (LlavaNextProcessor if next_kind else LlavaProcessor)(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT if chat else None,
    )
    processor.save_pretrained(folder)
    return folder


def write_tiny_idefics3(folder: Path) -> Path:
    """A model of another family, whose processor wants its pictures nested and cuts them into tiles."""
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    torch.manual_seed(4)
    tokenizer, _ = tiny_tokenizer()
    size = {"longest_edge": 16}
    images = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size=size)
    processor = Idefics3Processor(image_processor=images, tokenizer=tokenizer, image_seq_len=1, chat_template=CHAT)
    text = LlamaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=0.6,
    )
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = Idefics3Config(
        vision_config=vision, text_config=text, image_token_id=processor.image_token_id, scale_factor=2, pad_token_id=3
    )
    model = Idefics3ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "connector" in name or "vision" in name:
                weight.mul_(6)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
