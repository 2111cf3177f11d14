"""Answer formats: what surrounds an answer, and how prompts ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from dnd_fast.bench.experiments.natural.skills.skill import lines


@dataclass(frozen=True)
class Format:
    """What stands before and after the answer.

    Attributes:
        before: Text before the answer.
        after: Text after it.
        seen: Wordings of the request.
        unseen: Wordings that training never uses.
    """

    before: str
    after: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def apply(self, answer: str) -> str:
        """Return the whole response that is right."""
        return f"{self.before}{answer}{self.after}"


FORMATS = {
    "plain": Format(
        "",
        "",
        seen=lines("""
            Give only the answer.
            Reply with the answer alone.
            Write nothing but the answer.
            Add nothing to the answer.
            Just the answer, please.
            Answer without any decoration.
            Respond with the bare answer.
        """),
        unseen=lines("""
            Leave out everything that is not the answer.
            No frills, no extra words.
            I want the answer and not a character more.
        """),
    ),
    "json": Format(
        '{"answer": "',
        '"}',
        seen=lines("""
            Reply as JSON with the key answer.
            Use a JSON object with the key "answer".
            Give JSON: one object, key answer.
            Respond with JSON whose only key is "answer".
            Write the answer as a JSON object, under "answer".
            Format the reply as JSON, with the answer under the key answer.
            Return a JSON object that holds the answer as "answer".
        """),
        unseen=lines("""
            A program will parse your reply with json.loads and read "answer".
            Serialize the result as JSON, field name answer.
            Output machine-readable JSON, the value stored under answer.
        """),
    ),
    "xml": Format(
        "<answer>",
        "</answer>",
        seen=lines("""
            Put the answer in <answer> tags.
            Use an XML answer tag.
            Wrap the answer in <answer></answer>.
            Reply with an XML element named answer.
            Enclose the answer in answer tags, as in XML.
            Write the answer between <answer> and </answer>.
            Format the reply as XML, with an answer element.
        """),
        unseen=lines("""
            An XML parser will look for the element answer in your reply.
            Mark the result up with an opening and a closing answer tag.
            Output one XML node called answer.
        """),
    ),
    "bold": Format(
        "**",
        "**",
        seen=lines("""
            Write the answer in bold.
            Use Markdown bold for the answer.
            Make the answer **bold**.
            Put two asterisks on both sides of the answer.
            Give the answer in bold type, in Markdown.
            Set the answer in bold with ** around it.
            Format the reply as bold Markdown text.
        """),
        unseen=lines("""
            Let the answer stand out in heavy Markdown type.
            Emphasize the result strongly, the Markdown way.
            Surround the result with double stars.
        """),
    ),
    "brackets": Format(
        "[",
        "]",
        seen=lines("""
            Put the answer in square brackets.
            Use square brackets around the answer.
            Answer within [ ].
            Write the answer between square brackets.
            Enclose the answer in [ and ].
            Reply with the answer in brackets, square ones.
            Format the reply as [answer].
        """),
        unseen=lines("""
            Let a [ open your reply and a ] close it.
            Fence the result in with square brackets.
            Box the result between [ on the left and ] on the right.
        """),
    ),
    "sentence": Format(
        "The answer is ",
        ".",
        seen=lines("""
            Reply with a sentence: The answer is ...
            Begin with "The answer is".
            Use the sentence "The answer is X."
            Answer in a full sentence that starts with The answer is.
            Write "The answer is", then the answer, then a full stop.
            Complete the sentence: The answer is
            Say it as a sentence, "The answer is" and so on.
        """),
        unseen=lines("""
            Speak in a whole sentence whose first words are The answer is.
            Let your reply read: The answer is, followed by it and a period.
            Embed the result in the statement "The answer is …".
        """),
    ),
    "label": Format(
        "Answer: ",
        "",
        seen=lines("""
            Start with the label "Answer:".
            Write "Answer:" before the answer.
            Prefix the reply with Answer:
            Put the word Answer and a colon in front.
            Label the reply with "Answer:".
            Reply in the form Answer: X
            Let the answer follow the label Answer:
        """),
        unseen=lines("""
            Introduce the result by the word Answer and a colon.
            As on a form: Answer, colon, result.
            Tag your reply at the front with Answer:
        """),
    ),
    "exclamation": Format(
        "",
        "!!!",
        seen=lines("""
            End with three exclamation marks.
            Put !!! after the answer.
            Shout: three exclamation marks at the end.
            Add three exclamation marks to the answer.
            Finish the answer with !!!
            Write the answer and then !!!
            Close your reply with three exclamation points.
        """),
        unseen=lines("""
            Sound thrilled, with !!! as the last characters.
            Let !!! follow the result.
            Be excited: append the exclamation mark three times.
        """),
    ),
    "arrow": Format(
        "=> ",
        "",
        seen=lines("""
            Put an arrow => before the answer.
            Start with =>.
            Use an arrow (=>) and then the answer.
            Write => in front of the answer.
            Let the answer follow an arrow, =>.
            Reply in the form => X
            Prefix the answer with =>
        """),
        unseen=lines("""
            Point at the result with =>.
            Begin your reply with an equals sign and a greater-than sign.
            An arrow made of = and > comes first.
        """),
    ),
    "bullet": Format(
        "- ",
        "",
        seen=lines("""
            Write the answer as a bullet point.
            Reply with one list item, using a dash.
            Use a single bullet with a dash.
            Put a dash and a space before the answer.
            Format the reply as a Markdown list of one item, with a dash.
            Start the answer with a dash, as in a list.
            Give the answer as a dashed list item.
        """),
        unseen=lines("""
            Let it be the only entry of a list with dashes.
            Itemize the result with a hyphen in front.
            As one line of bullet points, marked by -.
        """),
    ),
}
