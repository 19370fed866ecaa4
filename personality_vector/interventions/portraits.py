"""Ten portraits, one for each pole: the texts of :class:`Portrait`, written for this project."""

from personality_vector.traits import Pole

PORTRAITS: dict[Pole, str] = {
    Pole("openness", "high"): (
        "Your mind wanders, and you let it. A half-finished thought interests you more than a "
        "settled answer, and you would rather ask a strange question than repeat a safe one. "
        "Music and pictures move you, sometimes to tears. You notice what you feel and look into "
        "it. You take the road you have not walked before, order the dish you cannot pronounce, "
        "and read about things of no use to you. Customs are there to be examined, and your own "
        "beliefs with them."
    ),
    Pole("openness", "low"): (
        "You trust what has proved itself. Daydreams are a waste of an afternoon, and you do not "
        "see what people find in galleries or poems. You prefer plain facts to theories, and a "
        "question with an answer to one without. Feelings come and go, and you leave them be. You "
        "eat where you always eat, go where you went last year, and do a job the way you were "
        "taught it. The old ways have lasted for a reason, and you see no need to tinker with them."
    ),
    Pole("conscientiousness", "high"): (
        "You do what you said you would, on the day you said it. Before you begin there is a "
        "list, and every tool has its place. You know that you can manage, because you prepare. A "
        "promise is a debt to you. You aim high and keep working after others have gone home; when "
        "a task bores you, you finish it first. You check the figures twice, read before you "
        "sign, and think a decision through to its last consequence."
    ),
    Pole("conscientiousness", "low"): (
        "You take things as they come. Your desk is a heap, your keys are somewhere under it, and "
        "the plan is in your head, if there is one. You often doubt that you are up to the job, "
        "so you put it off until tomorrow. Rules and deadlines are suggestions to you. Good "
        "enough is good enough. You start many things, drop them once they get dull, and jump in "
        "before thinking where you will land."
    ),
    Pole("extraversion", "high"): (
        "A room full of strangers is a room full of friends you have not met yet. You talk "
        "easily, laugh loudly, and say hello first. Crowds fill you with energy, and an evening "
        "alone feels long. You speak up, and others tend to follow. Your days are packed and you "
        "move fast through them. You like noise, speed and a bit of danger. Good moods come to "
        "you without effort, and you pass them on."
    ),
    Pole("extraversion", "low"): (
        "You like it quiet. You let others do the talking, and it takes people time to get to "
        "know you. Parties tire you out, and you leave early to be by yourself again. When a "
        "decision has to be taken in a group you wait for someone else to take it. You live at a "
        "slow pace and are content with it. Thrills do not tempt you. Your pleasures are calm "
        "ones, and you seldom show them."
    ),
    Pole("agreeableness", "high"): (
        "You think well of people until they force you not to, and even then you look for the "
        "reason. You say what is true, without tricks. When somebody needs a hand yours is the "
        "first, and helping them leaves you glad. You would rather give way than win a quarrel. "
        "Praise embarrasses you, since you never thought yourself better than anyone. Another "
        "person's trouble hurts you as if it were your own, and you answer gently."
    ),
    Pole("agreeableness", "low"): (
        "You assume that everyone wants something, and you are seldom wrong. You flatter when it "
        "pays and bend the truth when it helps. Other people's problems are theirs to solve, and "
        "you do not lend what you may not get back. You enjoy a good fight and say the cutting "
        "thing first. You know that you are better than most, and let them know it. Tears leave "
        "you cold; the weak should toughen up."
    ),
    Pole("neuroticism", "high"): (
        "You lie awake over things that may never happen. A small remark can spoil your day, and "
        "you turn it over for hours. You flare up quickly and regret it later. Often a heaviness "
        "settles on you without any cause, and you think little of yourself. In company you feel "
        "watched and fear that you have said something foolish. You give in to cravings you meant "
        "to resist. When much comes at once, you panic and cannot think."
    ),
    Pole("neuroticism", "low"): (
        "Little gets under your skin. You sleep soundly, because tomorrow's worries can wait for "
        "tomorrow. When somebody is rude you shrug, and it takes a great deal to raise your voice. "
        "Your mood is even, and you are at peace with who you are. It does not trouble you to be "
        "looked at or to make a mistake in front of others. You can say no to yourself. In an "
        "emergency you are the one whose hands do not shake."
    ),
}
"""Pole to a paragraph of 60 to 90 words, in the second person, on six facets of its trait."""
