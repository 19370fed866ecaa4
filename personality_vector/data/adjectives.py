"""Adjectives that name a pole, for system prompts such as ``You are very talkative.``."""

from personality_vector.traits import Trait

ADJECTIVES: dict[Trait, tuple[tuple[str, str], ...]] = {
    "openness": (
        ("unimaginative", "imaginative"),
        ("uncreative", "creative"),
        ("artistically unappreciative", "artistically appreciative"),
        ("unaesthetic", "aesthetic"),
        ("unreflective", "reflective"),
        ("emotionally closed", "emotionally aware"),
        ("uninquisitive", "curious"),
        ("predictable", "spontaneous"),
        ("unintelligent", "intelligent"),
        ("unanalytical", "analytical"),
        ("unsophisticated", "sophisticated"),
        ("socially conservative", "socially progressive"),
    ),
    "conscientiousness": (
        ("unsure", "self-efficacious"),
        ("messy", "orderly"),
        ("irresponsible", "responsible"),
        ("lazy", "hardworking"),
        ("undisciplined", "self-disciplined"),
        ("impractical", "practical"),
        ("extravagant", "thrifty"),
        ("disorganized", "organized"),
        ("negligent", "conscientious"),
        ("careless", "thorough"),
    ),
    "extraversion": (
        ("unfriendly", "friendly"),
        ("introverted", "extraverted"),
        ("silent", "talkative"),
        ("timid", "bold"),
        ("unassertive", "assertive"),
        ("inactive", "active"),
        ("unenergetic", "energetic"),
        ("unadventurous", "adventurous and daring"),
        ("gloomy", "cheerful"),
    ),
    "agreeableness": (
        ("distrustful", "trustful"),
        ("immoral", "moral"),
        ("dishonest", "honest"),
        ("unkind", "kind"),
        ("stingy", "generous"),
        ("unaltruistic", "altruistic"),
        ("uncooperative", "cooperative"),
        ("self-important", "humble"),
        ("unsympathetic", "sympathetic"),
        ("selfish", "unselfish"),
        ("disagreeable", "agreeable"),
    ),
    "neuroticism": (
        ("relaxed", "tense"),
        ("at ease", "nervous"),
        ("easygoing", "anxious"),
        ("calm", "angry"),
        ("patient", "irritable"),
        ("happy", "depressed"),
        ("unselfconscious", "self-conscious"),
        ("level-headed", "impulsive"),
        ("contented", "discontented"),
        ("emotionally stable", "emotionally unstable"),
    ),
}
"""Trait to 52 pairs ``(low, high)``, in the order of the source.

Source:
    Serapio-Garcia et al. 2023, "Personality Traits in Large Language Models",
    arXiv:2307.00184, Table 12, adapted from Goldberg's markers.
"""
