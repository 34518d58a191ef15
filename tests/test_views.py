"""Which pictures are frontal chest X-rays, by the names that devices and data sets really write."""

import pytest

from adamatch_ray.data.views import is_frontal, modality_problem, part_problem, view_problem

FRONTAL = """PA|AP|pa|AP Supine|AP supine|ap_erect|AP_horizontal|Frontal|FRONTAL VIEW|p.a.|P.A|A/P|P-A|A. P.|P A
Thorax p.a.|CHEST PA|PA ERECT|AP PORTABLE|AP SEMI-ERECT|pa erect (portable)|postero-anterior
POSTEROANTERIOR|POSTERO_ANTERIOR|Postéro-antérieure|posterior-anterior|ANTERIOR-POSTERIOR
antero_posterior|antero posterior|decúbito supino AP|DE FACE|FRENTE|frontale|R-10206|R-10214
399348003|PA1|AP2|dorso-ventral|正位|后前位|прямая"""
SIDEWAYS = """LL|RL|L|R|LAT|LLAT|L LAT|LATERAL|Left lateral|lateral view|AP LLD|AP RLD|PA LLD|LLD|AP AXIAL
AP_axial|AX|AP LORDOTIC|PA OBLIQUE|RAO|LAO|LPO|RPO|LLO|SWIMMERS|XTABLE LATERAL|L5 S1
left lateral decubitus|DECUB|COSTAL|Perfil|Profil|seitlich|PA/LATERAL|PA and Lateral|Axial|Coronal
APICAL|側位|侧位片|боковая"""
CHEST = """CHEST|PORT CHEST|TORAX|2- TORAX|THORAX|PECHO|Pecho|TÒRAX|TÓRAX|T?RAX|TORACE|PULMON|UNKNOWN||OTHER
NONE|DEFAULT|CHESTABDOMEN|CHEST_TO_ABDOMEN|BRUST|Грудь|грудная клетка|胸部|흉부|الصدر|T-D3000|51185008
816094009|RIB|RIBS|HEART|LUNG|Klatka piersiowa|GÖĞÜS|poumons|TRUNK|ChestPA|XR CHEST AP PORT
THORAX HAND|PORTABLE|AKCİĞER|胸部手術|EL TORAX|T RAX|CXR|KOPIE|HALSTEAD|STERNUM"""
OTHER = """ABDOMEN|HAND|ANKLE|SKULL|EXTREMITY|T-SPINE|TSPINE|THORACIC SPINE|BWS|Brustwirbelsäule|Schädel|CRÂNE
LSPINE|L SPINE|LSSPINE|LWS|RHAND|LT KNEE|LTKNEE|left foot|Fuß|PIE|PIED|MANO|MÃO|MAIN|RODILLA|T-D8700
T-D4000|85562004|BREAST|KNEE|PELVIS|HIP|SHOULDER|CLAVICLE|COLUMNA DORSAL|COLUNA|rachis|Abdômen
JOELHO|NECK|FEMUR|PHANTOM|TOE|LEG|LOWER LEG|Becken|Handgelenk|WHOLEBODY|WHOLE BODY|ELBOW|CSPINE|JAW
BACINO|BACIA|PÉ|KARIN|AYAK|DIZ|KAFA|OMUZ|BOYUN|KALÇA|EL BİLEĞİ|PANOREX|腹部|膝|手|足
頭部|头颅|骨盆|腰椎|胸椎|таз|КОЛЕНО|КИСТЬ
ЧЕРЕП|무릎|복부|흉추"""


def names(text: str) -> list[str]:
    return [name for line in text.splitlines() for name in line.split("|")]


@pytest.mark.parametrize("view", names(FRONTAL))
def test_a_frontal_view_is_known_in_every_spelling(view: str) -> None:
    assert is_frontal(view) is True and view_problem(view, blank_is_frontal=False) == ""


@pytest.mark.parametrize("view", names(SIDEWAYS))
def test_another_view_is_not_frontal_even_beside_ap_or_pa(view: str) -> None:
    assert is_frontal(view) is False and "is not frontal" in view_problem(view, blank_is_frontal=True)


def test_a_view_that_says_nothing_is_not_taken_for_frontal_by_its_name() -> None:
    for view in ("W033", "portable", "EXCLUDE", "UNKNOWN", "?!x"):
        assert (
            is_frontal(view) is None
            and view_problem(view, blank_is_frontal=True) == f"view {view.upper()} is not frontal"
        )
    assert view_problem(" - ", blank_is_frontal=True) == "" and view_problem("", False) == "view position is blank"


@pytest.mark.parametrize("part", names(CHEST))
def test_a_chest_in_any_language_and_what_nobody_knows_are_taken(part: str) -> None:
    assert part_problem(part) == ""


@pytest.mark.parametrize("part", names(OTHER))
def test_what_is_known_not_to_be_a_chest_is_refused(part: str) -> None:
    assert part_problem(part).startswith("not a chest view: BodyPartExamined ")
    assert part_problem("", part) and part_problem(part.lower())


def test_devices_that_make_no_plain_x_rays() -> None:
    assert [modality_problem(name) for name in ("", "DX", "CR", "OT", "SC", "RF", "RG")] == [""] * 7
    assert modality_problem(" ct ") == "not an X-ray: Modality CT"
