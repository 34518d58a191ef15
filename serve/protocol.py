"""What travels over HTTP and between deployments: plain values, no tensors.

Boxes are xyxy in pixels of the image they are said of: the upload, or the generated image.
"""

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MODEL_ID = "adamatch-cyclic"
MAX_SEED = 2**53 - 1
"""Largest seed: every JSON reader, JavaScript's too, keeps it exactly."""


def _clean(text: str) -> str:
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\r\t" for letter in text):
        raise ValueError("the report has control characters; send plain text")
    if not any(letter.isalnum() for letter in text):
        raise ValueError("the report has no words")
    return text.strip()


Warned = Annotated[
    str | None, Field(description="why the answer may say nothing about what was sent; null where it does")
]
Box = Annotated[tuple[float, float, float, float], Field(description="xyxy in pixels, x to the right, y down")]
ReportText = Annotated[
    str, Field(min_length=1, description="a report, findings then impression"), AfterValidator(_clean)
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, description="same request, same seed: same answer")]


class Request(BaseModel):
    """A request; an unknown field is an error, so that a misspelt one is not passed over."""

    model_config = ConfigDict(extra="forbid")


class ReportFields(Request):
    """Form fields beside the image of /v1/report."""

    seed: Seed = 0
    explain: bool = Field(default=False, description="also match the words of the report to regions of the image")


class StudyRequest(ReportFields):
    """Body of /v1/report where the X-ray is in an archive."""

    study: str = Field(max_length=1000, description="DICOMweb URL of a study, or of one instance, in a listed archive")


class SeedFields(Request):
    """Form fields beside the image of /v1/cycle."""

    seed: Seed = 0


class MatchFields(Request):
    """Form fields beside the image of /v1/match."""

    report: ReportText


class RetrieveFields(Request):
    """Form fields beside the image of /v1/retrieve."""

    k: int = Field(default=5, ge=1, le=50, description="how many studies")


class ImageRequest(Request):
    """Body of /v1/image, and of /v1/cycle where it starts from a report."""

    report: ReportText
    seed: Seed = 0


class RetrieveRequest(Request):
    """Body of /v1/retrieve where it starts from a report."""

    report: ReportText
    k: int = Field(default=5, ge=1, le=50, description="how many studies")


class ImageSize(BaseModel):
    """Pixels of the image that boxes refer to."""

    width: int
    height: int


class Keyword(BaseModel):
    """An entry of the textual codebook that a region of the X-ray matched; the prompt of the report had it.

    `place` is side and zone of the box in words, `hint` what the prompt said of it.
    """

    text: str
    group: str
    score: float
    box: Box
    place: str = ""
    hint: str = ""


class Keypatch(BaseModel):
    """An entry of the visual codebook that a word of the report matched; the prompt of the image had its tokens."""

    word: str
    entry: int
    score: float
    study_id: str
    box: Box = Field(description="in pixels of the training image it was cut from")
    crop: str | None = Field(default=None, description="the region itself, base64 PNG")


class Region(BaseModel):
    """Where something is seen, as one shape."""

    point: tuple[float, float] = Field(description="x, y of its strongest place, pixels")
    box: Box
    outline: list[list[tuple[float, float]]] = Field(description="closed polygons around it, x, y in pixels")


class Phrase(BaseModel):
    """A mention of a finding in a report, and whether and where the image shows it."""

    finding: str = Field(description="the lexicon's term")
    text: str
    words: list[int] = Field(description="indices into the words of the match")
    denied: bool = Field(description="the report says that it is absent: it has no region")
    groundable: bool = Field(description="false where the image does not seem to show it")
    confidence: float = Field(description="0 to 1, of the image showing it")
    region: int = Field(description="index into the regions of the match, -1: none")


class Word(BaseModel):
    """A word of a report, where it is seen, and the adaptive patch that matches it best."""

    text: str
    start: int = Field(description="offset of its first character in the report, -1 where the report was cut before")
    end: int
    patch: int = Field(description="index into the boxes of the match")
    score: float
    box: Box
    region: int = Field(default=-1, description="index into the regions of the match; -1: the report denies it")


class MatchResponse(BaseModel):
    """Word ↔ region similarities of one image and one report before they are averaged; a blank image matches none."""

    report: str
    image: ImageSize
    words: list[Word]
    phrases: list[Phrase] = Field(default=[], description="mentions of findings, in reading order")
    regions: list[Region] = Field(default=[], description="of words and phrases; words of a phrase share one")
    boxes: list[Box] = Field(description="one adaptive region for each patch")
    fixed_boxes: list[Box] = Field(description="the grid cell each region started from")
    similarity: list[list[float]] = Field(description="[words][patches], cosine")
    text_to_image: float = Field(description="mean over words of the best region")
    image_to_text: float = Field(description="mean over regions of the best word")
    warning: Warned = None


class ReportResponse(BaseModel):
    """A report written from an X-ray. Research use only."""

    report: str
    status: str = Field(description='"ok", or "truncated: …" where the report has no end')
    keywords: list[Keyword]
    image: ImageSize
    image_tokens: list[int] = Field(description="VQ-GAN codes of the X-ray, row by row")
    match: MatchResponse | None = Field(default=None, description="with explain")
    preview: str | None = Field(default=None, description="with explain: the X-ray as the models see it, base64 PNG")
    seed: int
    request_id: str


class ImageResponse(BaseModel):
    """An X-ray drawn from a report: synthetic, never a patient's. Research use only."""

    report: str
    status: str
    png: str = Field(description="base64 PNG, gray")
    image: ImageSize
    image_tokens: list[int]
    keypatches: list[Keypatch]
    seed: int
    request_id: str
    warning: Warned = None


class CycleResponse(BaseModel):
    """image → report → image, or report → image → report: `start` says which came first."""

    start: str = Field(description='"image" or "report"')
    report: ReportResponse
    image: ImageResponse


class Hit(BaseModel):
    """A study of the index."""

    study_id: str
    score: float
    report: str
    png: str = Field(description="base64 PNG of its canvas")


class RetrieveResponse(BaseModel):
    """The studies that match best, best first: eq. 5 for an image, eq. 6 for a report."""

    hits: list[Hit]
    indexed: int = Field(description="studies in the index")
    split: str
    request_id: str
    warning: Warned = None


class Model(BaseModel):
    """A trained stage that answers come from."""

    name: str
    fingerprint: str
    version: str


class ServedModel(BaseModel):
    """What a client names as its `model`: here always the same, the four models together."""

    id: str = MODEL_ID
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "adamatch_ray"


class ModelsResponse(BaseModel):
    """What is served: `object` and `data` as OpenAI's clients read them, and what is behind that."""

    object: Literal["list"] = "list"
    data: list[ServedModel] = [ServedModel()]
    models: list[Model]
    trained_on: str = Field(description="what the models were trained on; of a phantom, nothing is clinical")
    canvas: int = Field(description="side of the square the models see, pixels")
    image_tokens: int = Field(description="VQ-GAN codes of an image")
    notice: str = "Research use only. Not for clinical decisions."


class Sample(BaseModel):
    """A built-in phantom to try the service with; synthetic, its findings are drawn and their places known."""

    id: str
    url: str
    report: str
    findings: list[str]
    boxes: list[Box] = Field(description="where each finding was drawn")
    image: ImageSize


class ReadyResponse(BaseModel):
    """State of each deployment."""

    ready: bool
    deployments: dict[str, str]


class ImageUrl(BaseModel):
    """An image within a message."""

    url: str = Field(description="data:image/png;base64,… of a JPEG, PNG or DICOM; nothing is fetched from elsewhere")


class ContentPart(BaseModel):
    """A part of a message; text is not read."""

    type: str
    image_url: ImageUrl | None = None


class ChatMessage(BaseModel):
    """A message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None


class ChatRequest(BaseModel):
    """OpenAI's chat.completions.create. The last X-ray of the messages is reported; other fields are passed over."""

    model: str = MODEL_ID
    messages: list[ChatMessage] = Field(min_length=1)
    seed: Seed | None = None
    stream: bool = False
    n: Literal[1] | None = Field(default=None, description="one report a request")


class Said(BaseModel):
    """What the model says, or a piece of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(BaseModel):
    """The one report; `length`: it has no end."""

    index: Literal[0] = 0
    message: Said
    finish_reason: Literal["stop", "length"]


class ChatResponse(BaseModel):
    """OpenAI's chat.completion. Research use only."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = MODEL_ID
    choices: list[ChatChoice]


class ChunkChoice(BaseModel):
    """A piece of the one report."""

    index: Literal[0] = 0
    delta: Said
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    """OpenAI's chat.completion.chunk: an event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str = MODEL_ID
    choices: list[ChunkChoice]


class DrawRequest(BaseModel):
    """OpenAI's images.generate; other fields, the size among them, are passed over."""

    model: str | None = MODEL_ID
    report: ReportText = Field(alias="prompt")
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    seed: Seed | None = Field(default=None, description="of the first image; those after it have the next ones")
    response_format: Literal["b64_json"] | None = None
    stream: Literal[False] | None = None


class DrawnImage(BaseModel):
    """A synthetic X-ray, never a patient's."""

    b64_json: str = Field(description="base64 PNG, gray")


class DrawResponse(BaseModel):
    """OpenAI's images response. Research use only."""

    created: int
    data: list[DrawnImage]
    output_format: Literal["png"] = "png"
