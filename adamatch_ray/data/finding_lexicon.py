"""Words of the rule labeler: how findings are named, and which words negate, hedge or end their reach.

Plain tables of regular expressions over lower-case sentences, so that a site can read them and pass its own. `GAP`
allows a few words between two parts of a phrase, none of which may start another statement.
"""

GAP = r"(?: (?!(?:normal|limits?|lungs?|pleural|but|without|no|aort\w+|otherwise|stable in)\b)[\w/%.-]+){0,6}?"
_HEART = r"(?:heart|cardiac (?:silhouette|contours?|shadow|size)|cardiopericardial silhouette)"
_CENTRE = r"(?:cardio ?-?mediastin\w+(?: silhouettes?| contours?)?|heart and mediastin\w+|mediastin\w+(?: contours?)?)"
_LARGE = r"(?:enlarged|large|larger|borderline|prominent|increased|generous)"
_UPPER = r"(?:top|upper)[- ](?:limits? )?(?:of )?normal"  # still normal
_NORMAL = rf"(?:{_UPPER}|normal|unremarkable|not enlarged|not grossly enlarged|non-?enlarged|within limits)"
_PLACE = r"(?:(?:lung|lobar|lobe|basilar|bibasilar|basal|apical|perihilar|retrocardiac|lingular|alveolar|airspace) )"

PRESENT: dict[str, tuple[str, ...]] = {
    "Atelectasis": (r"atelecta\w+", r"(?:lobar|lobe|lung) collapse", r"collapse of the \w+ (?:\w+ )?(?:lobe|lung)"),
    "Cardiomegaly": (
        r"\w*cardiomegaly",
        r"(?:cardiac|heart) enlargement",
        r"enlargement of (?:the )?" + _HEART,
        r"(?:enlarged|large|borderline|prominent|big) (?:size )?(?:of )?(?:the )?" + _HEART,
        _HEART + GAP + " " + _LARGE,
        r"increase in (?:size of )?(?:the )?(?:heart|cardiac) ?(?:silhouette|size)?",
    ),
    "Consolidation": (r"(?!consolidated)consolidat\w+", r"air bronchograms?"),
    "Edema": (
        r"(?:pulmonary|interstitial|alveolar|lung|airspace|subpleural|perihilar|septal)(?: \w+){0,2}? o?edema",
        r"(?<!soft tissue )(?<!tissue )(?<!subcutaneous )\bo?edema",
        r"kerley",
        r"(?:heart|cardiac|congestive|left ventricular) failure",
        r"(?:fluid|volume) overload",
        r"\bchf\b",
    ),
    "Enlarged Cardiomediastinum": (
        r"(?:widen\w*|enlarged|enlargement of|prominent|prominence of|large) (?:the )?(?:superior )?" + _CENTRE,
        _CENTRE + GAP + r" (?:widen\w*|enlarged|prominent)",
    ),
    "Fracture": (r"fractur\w*", r"compression deformit\w+"),
    "Lung Lesion": (
        r"(?:micro)?nodul(?:es?|ar(?: \w+){0,2}? (?:opacit|densit|lesion|focus|foci)\w*)\b",
        r"(?<!thyroid )(?<!tissue )mass(?:es)?\b(?! effect)",
        r"(?:lung|pulmonary|bronchogenic) (?:lesions?|cancer|carcinoma|malignan\w+|neoplasm|tumou?r)",
        r"(?:cavitary|cavitating|coin|spiculated) (?:lesions?|opacit\w+)",
        r"neoplas\w+|metasta\w+|tumou?rs?\b|malignan\w+|carcinoma",
    ),
    "Lung Opacity": (
        r"opaci(?:ty|ties|fications?)",
        r"infiltrat\w+",
        r"air ?-?space (?:disease|process|filling)",
        r"(?:parenchymal|alveolar|lung|interstitial) (?:disease|process|densit\w+)",
        r"(?:increased|prominent|coarse\w*) (?:\w+ )?interstitial (?:\w+ )?markings",
        r"interstitial (?:lung )?(?:prominence|thickening|markings are (?:increased|prominent))",
        _PLACE + r"densit\w+",
        r"(?:patchy|hazy|streaky|ill-defined) densit\w+",
    ),
    "Pleural Effusion": (
        r"(?<!pericardial )effusions?",
        r"pleural fluid",
        r"hydro(?:pneumo)?thora\w+|hemothora\w+|empyema",
    ),
    "Pleural Other": (
        r"pleural(?: \w+){0,2}?[ -](?:thickening|scar\w*|plaques?|calcification\w*|disease|reaction|mass\w*)",
        r"thickening (?:of|in) the (?:\w+ )?(?:pleura|fissure)",
        r"fissural thickening",
        r"apical (?:\w+ )?(?:capping|cap)\b",
        r"fibrothora\w+",
    ),
    "Pneumonia": (
        r"(?<!organizing )pneumoni(?:a|as|tis)\b",
        r"bronchopneumonia",
        r"(?<!granulomatous )(?<!histoplasmosis )infect(?:ion|ious|ive)\b",
    ),
    "Pneumothorax": (r"(?:hydro)?pneumothora\w+", r"pneumothoraces"),
    "Support Devices": (
        r"(?:endotracheal|tracheostomy|nasogastric|orogastric|enteric|feeding|chest|thoracostomy|ng|et|og|dobbhoff)"
        r"[- ]?tubes?",
        r"tracheostomy|\bpicc\b|port-?a-?cath|mediport|\bports?\b|catheters?|central (?:venous )?lines?",
        r"(?:jugular|subclavian|venous|picc|arterial) (?:\w+ )?lines?",
        r"pace ?-?makers?|\b(?:aicd|icd|lvad|iabp)\b|defibrillators?|pacing (?:\w+ )?(?:device|leads?|wires?)",
        r"(?:pacemaker|cardiac|pacer|ventricular|atrial) (?:leads?|devices?|wires?)|generator",
        r"sternotomy (?:wires?|sutures?|clips?|xxxx)|surgical clips|prosthe\w+|stents?\b|valve replacement|hardware",
        r"\b(?:spinal|fixation) (?:rods?|plates?|screws?)",
    ),
}
"""Phrases that name a finding; whether it is asserted is decided by the words around it."""

SUGGESTED: dict[str, tuple[str, ...]] = {
    "Pleural Effusion": (
        r"blunt\w*(?: \w+){0,5}? (?:costophrenic|cp|cardiophrenic|sulc\w+|angles?)",
        r"(?:costophrenic|cp)(?: (?!sharp|clear)\w+){0,5}? blunt\w*",
    ),
}
"""Signs that leave their finding uncertain where nothing else names it."""

ABSENT: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        _HEART + GAP + " " + _NORMAL,
        _HEART + GAP + r" within (?:the )?(?:\w+ )?(?:normal )?limits",
        r"(?:normal|unremarkable)(?: \w+)? (?:size of the )?" + _HEART,
        r"(?:normal|unremarkable)(?: \w+)? " + _CENTRE,
        r"cardio ?-?mediastin\w+" + GAP + " " + _NORMAL,
        r"heart and mediastin\w+" + GAP + " " + _NORMAL,
        r"cardio ?-?mediastin\w+" + GAP + r" within (?:the )?(?:normal )?limits",
    ),
    "Enlarged Cardiomediastinum": (
        _CENTRE + GAP + " " + _NORMAL,
        _CENTRE + GAP + r" within (?:the )?(?:\w+ )?(?:normal )?limits",
        r"(?:normal|unremarkable)(?: \w+)? " + _CENTRE,
    ),
    "Pleural Effusion": (
        r"pleural spaces? (?:\w+ )?clear",
        r"(?:costophrenic|cp) (?:angles?|sulci) (?:\w+ )?(?:sharp|clear)",
    ),
    "Fracture": (r"(?:bones?|osseous structures?|bony structures?|ribs?|bony thorax)" + GAP + " intact",),
}
"""Phrases that assert absence by themselves."""

NEUTRAL = (
    r"\bno (?:\w+ ){0,3}?(?:change|interval (?:change|development)|increase|progression|improvement|worsening)s?"
    r"(?: (?:in|of|from|to)\b)?",
    r"\bnot (?:significantly |substantially |appreciably )?(?:changed|increased|improved)",
    r"\bwithout (?:\w+ ){0,2}?change",
    r"\bhistory of (?:\w+ )?\w+",
    r"\bno doubt\b",
    r"\bnot only\b",
    r"\bno (?:comparison|prior)\w*",
)
"""Phrases that neither assert nor negate a finding though they read so; blanked out before anything else."""

NEGATED_BEFORE = (
    r"\bno\b(?: \w+){0,6} (?:to suggest|suggesting|suggestive of|suspicious for|concerning for|to indicate|of)\b",
    r"\b(?:no|not|without|absen(?:t|ce)|den(?:y|ies)|neither|nor|never|resolved)\b",
    r"\b(?:lack of|resolution of|removal of|clear of)\b",
    r"\bnegative for\b",
    r"\bfree (?:of|from)\b",
    r"\b(?:rather|other) than\b",
    r"\b(?:exclude|excludes|ruled out)\b",
)

NEGATED_AFTER = (
    r"\bnot\b(?: \w+){0,2} (?:seen|identified|visuali[sz]ed|evident|appreciated|demonstrated|present|noted|detected)",
    r"\bno longer\b",
    r"\b(?:is|are) (?:absent|not)\b",
    r"\b(?:has|have)(?: \w+)? (?:resolved|cleared|disappeared|been removed)",
    r"^ (?:has )?resolved\b",
)

UNCERTAIN_BEFORE = (
    r"\b(?:can ?not|can't|not|difficult to|to) (?:be )?(?:entirely |completely |definitely )?(?:excluded?|rule out)",
    r"\b(?:may|might|could|possib\w+|probab\w+|likely|perhaps|suspect\w*|question\w*|presum\w+)\b",
    r"\b(?:suspicio\w+ (?:for|of)|(?<!to )suggest\w*)\b",
    r"\b(?:concern\w*|worrisome|favor\w*|differential|versus|vs|equivocal|borderline|consider\w*)\b",
    r"\b(?:rule out|evaluate for|or early)\b",
)

UNCERTAIN_AFTER = (
    r"\b(?:can ?not|can't|not)(?: be)?(?: \w+)? (?:excluded|ruled out)",
    r"\b(?:is|are|remains?) (?:possible|suspected|questioned|likely|not excluded|a possibility)",
    r"\b(?:may|might|could) be (?:present|considered)",
    r"^ ?\?|\b(?:suspected|questioned)$",
)

ALTERNATIVE_AFTER = (r"^(?: \w+)? (?:and/)?(?:or|versus|vs)\b", r"^ ?/")
"""An alternative leaves a finding open unless the whole list is negated."""

BREAK = (
    r"[;:]",
    r"\b(?:but|however|although|though|except|aside from|apart from|otherwise|while|whereas|which|because)\b",
    r"\b(?:there|this|these|that|it)\b(?= (?:is|are|was|were|has|have|may|could|appears?)\b)",
    r",? and (?=(?:there|the|a|an|mild|minimal|small|stable|moderate|persistent|unchanged)\b)",
    r", (?=(?:stable|mild|minimal|small|moderate|persistent|unchanged|chronic|low|status|with|the|a|an|and no|no)\b)",
    r"\bwith (?=(?:a|an|bilateral|mild|minimal|small|stable|moderate|persistent|unchanged|associated)\b)",
)
"""Where the reach of a negating or hedging word ends inside a sentence."""

_SEPARATOR = r"\s*(?::|=|-+>|\s-+\s)\s*"
_WHAT = r"^(?:[-*]\s*)?(?!.*\b(?:no|not|without)\b[^:=]*[:=])(?P<what>[a-z][\w ,/()-]{1,60}?)" + _SEPARATOR
_UNSEEN = (
    r"not (?:\w+ )?(?:seen|present|identified|visuali[sz]ed|evident|detected|noted|demonstrated|appreciated|apparent)"
)
_NONE = (
    rf"(?:(?:none|nil|nothing|neg(?:ative)?|absent|denied|resolved|{_UNSEEN}|no evidence)\b[^,;:]*"
    r"|(?:no|non|n|without|false|0|-|\(-\)|[\[(]\s*[\])]))"
)
_PERHAPS = (
    r"(?:possibl[ey]|probabl[ey]|(?:un)?likely|questionable|equivocal|suspected|suspicious|indeterminate|uncertain|maybe|\?"
    r"|(?:can ?not|can't|not) (?:be )?(?:excluded|ruled out))"
)
_SEEN = r"(?:yes|y|present|pos(?:itive)?|seen|true|1|\+|\(\+\)|[\[(]\s*[x*+]\s*[\])])"
_DEVICE = r"\b(?:tubes?|lines?|leads?|wires?|catheters?|pacemakers?|devices?|hardware|clips|valves?|prosthe\w+)\b"
_ANATOMY = (
    r"(?:heart|cardi\w+|mediastin\w+|silhouette|contours?|bon[ey]s?|osseous|ribs?|pleural? spaces?|cp angles?|lungs?)"
)

FORM = (
    (r"^(?:[\[(]\s*[\])]|(?:no|none|absent|negatives?|not (?:seen|present)):)\s*(?=\w)", "no "),
    (r"^[\[(]\s*[x*+]\s*[\])]\s*(?=\w)", ""),
    (r"^(?P<what>[a-z][\w /-]{1,40}?)\s*(?P<box>[\[(]\s*[x*+]?\s*[\])])\s*[.!;,]*$", r"\g<what>: \g<box>"),
    (rf"{_WHAT}(?:n/?a|unknown|not (?:applicable|assessed|evaluated|mentioned))\s*[.!;,]*$", ""),
    (rf"{_WHAT}{_NONE}\s*[.!;,]*$", r"no \g<what>"),
    (r"^(?!no\b)(?P<what>[a-z][\w /-]{1,40}?)[\s;-]+\(?(?:none|nil|absent|negative)\)?\s*[.!;,]*$", r"no \g<what>"),
    (rf"{_WHAT}(?P<says>(?:there is )?no (?!(?:\w+ )?(?:change|interval|increase)).*)$", r"no \g<what>; \g<says>"),
    (rf"{_WHAT}{_PERHAPS}\s*[.!;,?]*$", r"possible \g<what>"),
    (rf"{_WHAT}{_SEEN}\s*[.!;,]*$", r"\g<what>"),
    (rf"^(?P<what>(?:[\w/]+ ){{0,3}}?{_ANATOMY}(?: \w+){{0,2}}){_SEPARATOR}(?=\w)", r"\g<what> "),
    # No anatomy, or the rule before had taken it: a finding that is normal is none. A device may be in order.
    (rf"(?!.*{_DEVICE}){_WHAT}(?:normal|unremarkable|clear)\s*[.!;,]*$", r"no \g<what>"),
)
"""Lines of a form ("Pneumothorax: none.", "[ ] Effusion"), and the prose that says the same."""

FORM_LINE = r"[A-Za-z][\w /()]{2,40}(?::|\s[-=]\s)"
"""How a line of a form begins."""

ASKED = r"\?\s*(?=(?:[Yy]es|[Nn]o|[Nn]one|[Aa]bsent|[Pp]resent)\b\s*(?:[.;,\n]|$))"
"""Between a question and its answer."""

_ENGLISH = """
the and are with without there this these been was were which be by at from than within lung lungs heart chest clear
bone bones bony rib ribs spine size disease abnormality abnormalities unremarkable unchanged changes enlarged evidence
seen left right upper lower lobes findings finding small mild moderate severe mildly moderately opacity opacities
effusions airspace exam study view views cxr xray tube line wires pacemaker leads radiograph limits cardiopulmonary
contours tissue tissues tortuous degenerative healed masses atelectatic thickening scarring hyperinflated volumes
"""
_FOREIGN = """
el los las del una sin para que hay su ni derecho derecha izquierdo izquierda nao sem com uma dos das esquerda direita
le la les des du une avec sans pas dans est sont sur et droite droit gauche aucun aucune il gli della dei di con senza
nessun destro destra sinistro sinistra alla der das und ein eine kein keine keinen ohne mit von im rechts links ist
nicht zeigt de het een geen en zonder niet bez nie jest brak oraz och utan ingen ikke uten
"""
ENGLISH = frozenset(_ENGLISH.split())
"""Words that reports in English have and other languages have not."""

FOREIGN = frozenset(_FOREIGN.split())
"""Words that speak for another language: articles, prepositions, negations and sides."""
