"""Our own TFDS builders; they write ArrayRecord and need no TensorFlow."""

from ftjax.data.builders.drug_reviews import DrugReviews
from ftjax.data.builders.license_clauses import LicenseClauses

BUILDERS = {"license_clauses": LicenseClauses, "drug_reviews": DrugReviews}
