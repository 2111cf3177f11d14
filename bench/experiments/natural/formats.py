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
            Only the answer, nothing around it.
            Do not explain; answer.
            Keep it to the answer.
            I need the answer by itself.
            Skip any introduction or formatting.
            Output: the answer only.
            Can you say just the answer?
            Neither a sentence nor markup is wanted.
            Be brief: the answer, and that is it.
            Plain text, please.
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
            JSON, please: {"answer": ...}
            I need a JSON object with one field, answer.
            Answer in JSON (key: answer).
            Can you put it in JSON, keyed by "answer"?
            Wrap the answer in JSON: {"answer": "..."}.
            As an API, send back JSON with the key "answer".
            The reply must be a JSON object; its key is answer.
            Encode the answer in JSON under "answer".
            JSON only. Key: answer.
            Fill in this JSON: {"answer": ""}
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
            XML, please: <answer>...</answer>
            I need it inside <answer></answer>.
            Answer in XML (tag: answer).
            Can you tag it as <answer>?
            Surround the answer with answer tags.
            As a web service, return XML with an answer element.
            The reply: <answer>, then it, then </answer>.
            Fill in this XML: <answer></answer>
            XML only. Element: answer.
            Angle-bracket tags named answer go around it.
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
            In bold, please.
            I need it in **bold**.
            Answer in Markdown, bold.
            Can you bold the answer?
            Type the asterisks ** before it and again behind.
            Highlight the answer with asterisks: **.
            The reply must be bold, like **this**.
            Apply bold formatting (Markdown).
            Fill in this bold text: ** **
            Style: bold Markdown.
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
            Square brackets, please.
            I need [ before it and ] after it.
            Answer in brackets like [this].
            Can you bracket the answer with [ ]?
            Wrap it as [ ... ].
            Type [ first and ] last.
            The reply must look like [this].
            Square brackets go around it.
            Fill in: [ ]
            Style: in square brackets.
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
            Full sentence, please: The answer is X.
            I need "The answer is" in front, a full stop behind.
            Answer by finishing "The answer is ___."
            Can you reply with "The answer is ...", as a sentence?
            Phrase it like this: The answer is X.
            Open with The answer is, close with a full stop.
            Fill in: The answer is ___.
            Make a sentence out of it with "The answer is".
            Pattern: The answer is X.
            As a clerk, say "The answer is", then it.
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
            Label first, please: "Answer:".
            I need it after the word "Answer:".
            Answer like this: "Answer: X".
            Can you lead with Answer:
            Fill in the line Answer: ___
            The reply must open with "Answer:".
            Type Answer: and then the answer.
            Give it with Answer: in front.
            Use Answer: as a heading on the same line.
            Style: "Answer: ..."
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
            Three exclamation marks at the end, please.
            I need !!! behind it.
            Answer loudly, ending in !!!
            Can you finish with "!!!"?
            Type an exclamation mark thrice when you are done.
            Punctuate the answer with !!!
            The reply must end in three exclamation marks.
            Fill in: ___!!!
            Style: a cheer, !!! behind the answer.
            Attach !!! to it, without a space.
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
            Arrow first, please: =>
            I need => at the front.
            Answer like this: => answer
            Can you lead with =>?
            Type => and a space, then the answer.
            The reply must open with =>.
            Draw an arrow (=>), then give the answer.
            Fill in: => ___
            Mark the answer with a leading =>.
            Style: => before the answer.
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
            Bullet point, please, with a dash.
            I need it as a list item (dash).
            Answer in this bullet style: - answer
            Can you make it a dashed bullet?
            Type a dash, a space, then the answer.
            The reply must open with a dash, "- ".
            Turn the answer into a one-item list with a dash.
            Fill in this bullet: - ___
            Markdown bullet only, using -.
            Style: one dash bullet.
        """),
        unseen=lines("""
            Let it be the only entry of a list with dashes.
            Itemize the result with a hyphen in front.
            As one line of bullet points, marked by -.
        """),
    ),
}
