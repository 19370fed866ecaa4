"""Chat templates that behave as those of known families do, in our own words.

Marks are plain text here, so that one small tokenizer serves all of them.
"""

END = "<|end|>"


def _turns(role: str = "m.role", content: str = "m.content") -> str:
    return f"{{% for m in messages %}}<|{{{{ {role} }}}}|>{{{{ {content} }}}}{END}{{% endfor %}}"


_REPLY = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
_ROLES_ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)

SMOLLM2 = (
    "{% if messages[0].role != 'system' %}<|system|>You are SmolLM.<|end|>{% endif %}"
    + _turns()
    + _REPLY
)
"""A default system text, as Qwen2.5 has it too."""

LLAMA31 = (
    "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "<|user|>{% if messages[0].role == 'system' %}{% set told = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}"
    "<|system|>Today: {{ date_string }}\n{{ told }}<|end|>" + _turns() + _REPLY
)
"""The date of the day it is rendered, unless it is given; the text begins with a mark."""

GRANITE = "<|system|>Today's Date: {{ strftime_now('%B %-d, %Y') }}.<|end|>" + _turns() + _REPLY
"""The date of the day, which no variable sets."""

QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] | trim }}"
    "<|end|>{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and "
    "enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""A switch; the last reply is shown after an empty thought."""

R1 = _turns() + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
"""The prompt opens a thought that finished chats do not have."""

QWEN3_THINKING = QWEN3.partition("{% if add_generation_prompt %}")[0] + (
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
"""The prompt opens a thought, and finished chats have an empty one."""

GEMMA2 = (
    "<|user|>{% if messages[0].role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    + _ROLES_ALTERNATE
    + _turns("'model' if m.role == 'assistant' else m.role", "m.content | trim")
    + "{% if add_generation_prompt %}<|model|>{% endif %}"
)
"""No system role: it raises, and so it does if two messages of one role follow each other."""

GEMMA3 = (
    "{% set told = '' %}{% if messages[0].role == 'system' %}{% set told = (messages[0].content if "
    "messages[0].content is string else messages[0].content[0].text) ~ '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{% if loop.first %}{{ told }}{% endif %}"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}"
    "{{ part.text | trim }}{% endfor %}{% endif %}<|end|>{% endfor %}" + _REPLY
)
"""The template itself puts the system text into the user's turn, and takes texts and parts."""

MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content ~ '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}"
    + _ROLES_ALTERNATE
    + "{% for m in messages %}{% if m.role == 'user' %}<|user|>"
    "{% if loop.last %}{{ told }}{% endif %}"
    "{{ m.content }}{% else %}<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}" + _REPLY
)
"""The system text is shown if a user spoke last, and lost once there is a reply."""

PHI3 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>"
    "{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    + _REPLY
)
"""A system message is left out without a word."""

PHI4 = _turns() + _REPLY

PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|end|>{% endfor %}" + _REPLY
)
"""Contents are lists of parts, and of a text nothing is shown."""

FAMILIES = {
    "smollm2": SMOLLM2,
    "llama 3.1": LLAMA31,
    "granite": GRANITE,
    "qwen3": QWEN3,
    "qwen3 thinking": QWEN3_THINKING,
    "r1": R1,
    "gemma 2": GEMMA2,
    "gemma 3": GEMMA3,
    "mistral": MISTRAL,
    "phi 3": PHI3,
    "phi 4": PHI4,
    "parts": PARTS,
}
