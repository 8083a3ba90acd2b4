"""Held-out rows as they are asked: the prompt that was proven, and what should be answered.

In: a conversation, its tokens, and the template that was trained. Out: a `Question`. What is compared is what a user
gets to see: of an answer with reasoning the part behind it; of calls the text in which the template writes them.
"""

from dataclasses import dataclass

from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.prompt import Prompt
from tunewright.chat.rows import TokenRow
from tunewright.chat.slots import THOUGHT
from tunewright.chat.supervise import Supervisor


@dataclass(frozen=True)
class Question:
    """A held-out row.

    Attributes:
        id: the conversation's.
        target: what should be answered.
        end_of_reasoning: what a model writes between its reasoning and its answer; empty where it does not reason.
    """

    id: str
    prompt: Prompt
    target: str
    end_of_reasoning: str = ""

    @property
    def last_user_text(self) -> str:
        return next((message.text for message in reversed(self.prompt.messages) if message.role == "user"), "")

    def shown(self, text: str) -> str:
        """The part of a model's text that answers."""
        return text.rpartition(self.end_of_reasoning)[2].lstrip() if self.end_of_reasoning else text


def question_of(row: Conversation, tokens: TokenRow, supervisor: Supervisor) -> Question:
    """The question that the last turn of `row` answers; `tokens` are those of the row that ends with it."""
    prompt, last = supervisor.prompt_of(row), row.messages[-1]
    if not last.tool_calls and last.reasoning is None and not THOUGHT.match(row.target):
        return Question(row.id, prompt, row.target)
    start, end = len(supervisor.prompt_ids(prompt)), int(tokens.mask.nonzero()[0][-1]) + 1
    written = supervisor.decode(tokens.ids[start:end].tolist())
    question = Question(row.id, prompt, "", end_of_reasoning(last, written))
    return Question(row.id, prompt, question.shown(written), question.end_of_reasoning)


def end_of_reasoning(last: Message, written: str) -> str:
    """What `written` has between the turn's reasoning and what follows it, whitespace aside."""
    if inline := THOUGHT.match(last.text):
        return inline[3]
    if last.reasoning is None or not last.content:
        return ""
    following = written.partition(last.reasoning.strip())[2]
    return following.partition(last.content.strip())[0].strip()


def target_of(row: Conversation) -> str:
    """What the last turn says behind its reasoning."""
    inline = THOUGHT.match(row.target)
    return inline[4].lstrip() if inline else row.target
