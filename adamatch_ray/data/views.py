"""Which pictures are frontal chest X-rays, by the names that devices and data sets give to views and body parts.

A view has to be known as frontal. A body part is refused only where it is known *not* to be the chest: the chest is
written in every language, with typing errors, or left at a device's default, and an ankle is not.
"""

import re
import unicodedata


def _starts(words: str, after: str = "", anywhere: str = "") -> re.Pattern[str]:
    """Finds words that begin like one of these, or, with a bar at its end, are one of these.

    Those `anywhere` are of scripts that put no space between words.
    """
    stems = "|".join(word.replace("|", r"\b").replace("+", " ?") for word in words.split())
    return re.compile("|".join([rf"\b{after}(?:{stems})", *anywhere.split()]))


_FRONTAL = _starts(
    "PA\\d?| AP\\d?| PAERECT APERECT APSUPINE APPORTABLE FRONT FACE| FRENTE| DV| VD| DORSO+VENTR"
    " VENTRO+DORS POSTER\\w*+ANTER ANTER\\w*+POSTER"
    " R+10206| R+10214| 399348003| 272479007|",  # SNOMED's codes, in its two forms
    anywhere="正 后前 後前 前后 前後 ПРЯМАЯ 정면",
)
_SIDEWAYS = _starts(
    "(?:[LR]T?)?LAT LL| RL| LLD| RLD| LLO| RLO| LAO| RAO| LPO| RPO| LXT| RXT| [LR]\\b(?!+\\d{5}) L\\d AXIAL LAXIAL AX|"
    " OBL SCHRAG SCHRAEG SCHRAAG LORDO SWIM XTABLE CROSS TANGEN COSTAL APICAL APEX PROFIL PERFIL SEIT SAGIT CORONAL",
    anywhere="侧 側 斜 БОКОВ КОСАЯ 측면",
)
# Of another view than the frontal one, even beside AP or PA.
_FLAT = _starts("SUPIN PRON DORSAL VENTRAL")
# With one of these, "decubitus" is the Romance languages' word for lying; alone it is the English one for on the side.

_CHEST = re.compile(
    "CHEST|THORA|THORX|T.{0,2}RAX|TORAC|TORAK|CXR|PECHO|TORSO|LUNG|LONGEN|PULM|POLMON|POUMON|PLUC|RIB|RIPPE|COSTAE|TRUNK"
    "|BRYST|BROST|RINTA|KLATK|GOGUS|AKCIGER|胸|肺|ГРУД|ЛЕГК|흉|가슴"
)
_SPINE = _starts(
    "\\w*SPIN VERTEB \\w*WIRBEL COLUMN COLUNA COLONN RACHIS [CTLBH]WS| [CTL]+SP \\w*WERVEL SCOLIO SKOLIO",
    anywhere="[胸腰颈頸]椎 脊[柱椎] ПОЗВОН 척추 [흉요경]추",
)
# Refused beside a word for the chest, too: that is the thoracic spine.
_OTHER = _starts(
    # the belly, the hip and the neck
    "ABDOM ABD| KUB| BAUCH VENTRE BUIK PELVI PELVE BECKEN BASSIN BACI[NA] BEKKEN"
    " KARIN BATIN HIPS?| HUFT HUEFT HANCHE CADERA QUADRIL"
    " ANCA| KALCA HEUP SACR KREUZBEIN COCCY STEISS SIJ| NECK HALS| COU| CUELLO PESCOCO COLLO| CERVIC LUMB LOMB LENDEN"
    " BEL| BOYUN"
    # the head
    " SKULL SCHADEL SCHAEDEL CRAN HEAD KOPF TETE CABEZA CABECA TESTA| HOOFD FACI ORBIT SINUS NASAL NASEN NOSE EYES?|"
    " EARS?| MANDIB UNTERKIEFER MAXILL OBERKIEFER JAW TMJ TOOTH TEETH DENTAL ZAHN BRAIN MASTOID SELLA PANOR KAFA"
    # the shoulder and the arm
    " SHOULD SCHULTER EPAULE HOMBRO OMBRO SPALLA SCHOUDER CLAV SCHLUSSELB SCAPUL HUMER UMERO ARMS?| BRAS| BRAZO BRACO"
    " BRACCIO OBERARM UPPERARM UPPER+ARM FOREARM UNTERARM ANTEBR AVANTBRAS AVAMBR ELBOW ELLBOGEN ELLEBOOG COUDE CODO|"
    " COTOVELO GOMITO RADIUS ULNA WRIST POIGNET MUNECA PUNHO POLSO POLS| SCAPHOID HAND MAINS?| MANOS?| MAO| MANI|"
    " FINGER DOIGT DEDO DITO THUMB DAUMEN POUCE PULGAR POLLICE CARP METACARP OMUZ DIRSEK EL|"
    # the leg
    " FEMUR FEMOR THIGH OBERSCHENKEL CUISSE MUSLO COXA KNEE KNIE GENOU RODILL JOELHO GINOCCH PATELL LEGS?| BEIN JAMBE"
    " PIERNA PERNA GAMBA UNTERSCHENKEL LOWERLEG TIBIA FIBUL ANKLE SPRUNGGEL CHEVILL TOBILL TORNOZ CAVIGLI ENKEL CALCAN"
    " HEEL FERSE TALON FOOT FEET FUSS PIEDS?| PIEDE PIES?| VOET TOES?| ZEHE ORTEIL METATARS TARS EXTREM LIMB DIZ|"
    " AYAK PE|"
    # not one part of a person, or not a plain X-ray of the chest
    " WHOLE+BODY BREAST MAMM PHANTOM TEST+PATTERN SPECIMEN"
    # SNOMED's codes, in its two forms
    " T+D4000| T+D1100| T+D1600| T+D6000| T+D0300| T+D[89]\\d{3}| T+D2220| T+04000| T+11[15]\\d\\d| T+12[347]\\d\\d|"
    " T+15[47]\\d\\d| 818981001| 818983003| 113345001| 69536005| 45048000| 12921003| 816092008| 66019005| 85562004|"
    " 56459004| 72696002| 70258002| 16982005| 89546000| 76752008| 122494005| 122495006| 122496007| 421060004| 74670003|"
    " 127949000| 24136001| 71341001| 30021000| 14975008| 7569003| 29707007| 51299004| 85050009| 40983000|",
    after="(?:LEFT|RIGHT|[LR]T?)?",
    anywhere="腹 骨盆 骨盤 膝 [手足腕踝肘肩髋髖股] [头頭]部? 颅 頸 颈"
    " ЖИВОТ БРЮШ \u0422\u0410\u0417 КОЛЕН КИСТ СТОП ЧЕРЕП ГОЛОВ ПЛЕЧ ЛОКТ 무릎 손 발 복부 머리 두부 골반 어깨",
)
_FOREIGN = re.compile("CT|MR|US|NM|PT|MG|IO|PX|OP|OPT|ES|GM|SM|XC|ECG|BMD")
# No plain X-rays. RF and XA stay, as some devices call a radiograph so, and so do OT and SC, which are film scanners.


_BLANK, _SIDE = "view position is blank", " is not frontal"


def view_problem(view: str, blank_is_frontal: bool) -> str:
    """Why a view is no good for matching, or an empty string: it is frontal if it is PA or AP, in any spelling."""
    if not view.strip(" _-./"):
        return "" if blank_is_frontal else _BLANK
    return "" if is_frontal(view) else f"view {' '.join(view.upper().replace('_', ' ').split())[:24]}{_SIDE}"


def is_view_problem(reason: str) -> bool:
    """Whether `view_problem` said so."""
    return reason == _BLANK or (reason.startswith("view ") and reason.endswith(_SIDE))


def is_frontal(view: str) -> bool | None:
    """Whether a view is frontal (erect, supine or portable); None for a name that says nothing of it.

    Lying on the side (LLD, RLD), lordotic, axial and oblique views are not, whatever stands before them.
    """
    words = _words(view)
    if _SIDEWAYS.search(words) or ("DECUB" in words and not _FLAT.search(words)):
        return False
    return True if _FRONTAL.search(words) else None


def part_problem(*names: str) -> str:
    """Why a picture of these body parts, names or codes, is not one of the chest, or an empty string."""
    for name in names:
        words = _words(name)
        if _SPINE.search(words) or (_OTHER.search(words) and not _CHEST.search(words)):
            return f"not a chest view: BodyPartExamined {' '.join(name.split())[:16]}"
    return ""


def modality_problem(modality: str) -> str:
    """Why a device of this kind makes no plain X-rays, or an empty string."""
    name = modality.strip().upper()
    return f"not an X-ray: Modality {name}" if _FOREIGN.fullmatch(name) else ""


def _words(name: str) -> str:
    """Capital letters and digits of a name without accents, a space between its words; "p.a." and "P/A" are PA."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).upper()
    plain = unicodedata.normalize("NFC", "".join(letter for letter in plain if not unicodedata.combining(letter)))
    plain = re.sub(r"(?<=\b[A-Z])\s*[./ -]\s*(?=[A-Z]\b)", "", plain.replace("_", " "))
    return " ".join(re.findall(r"[^\W_]+", plain))
