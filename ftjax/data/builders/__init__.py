"""Our own TFDS builders; they write ArrayRecord and need no TensorFlow."""

from ftjax.data.builders.chitchat_replies import ChitchatReplies
from ftjax.data.builders.drug_reviews import DrugReviews
from ftjax.data.builders.license_clauses import LicenseClauses

BUILDERS = {
    "chitchat_replies": ChitchatReplies,
    "drug_reviews": DrugReviews,
    "license_clauses": LicenseClauses,
}
