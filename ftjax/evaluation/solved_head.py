"""A linear head that is solved for, not trained step by step."""

import numpy as np
from sklearn.linear_model import LogisticRegression

# Of the largest entry of the gradient of the mean loss: far below what float32 can hold.
TOLERANCE = 1e-10
STRENGTH = 1.0
"""scikit-learn's C, and SetFit's: inverse to how strongly weights are held near 0."""


def solve_head(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression with an L2 penalty, by Newton's method in float64, to convergence.

    The problem is convex and has one solution, up to a common constant of the biases.

    Args:
        features: float [examples, hidden].
        labels: int [examples], each of 0 to classes - 1 at least once.

    Returns:
        Kernel [hidden, classes] and bias [classes], float32: logits of all classes, for which
        softmax gives scikit-learn's probabilities.
    """
    model = LogisticRegression(C=STRENGTH, solver="newton-cg", tol=TOLERANCE, max_iter=1000)
    model.fit(features.astype(np.float64), labels)
    kernel, bias = model.coef_.T, np.asarray(model.intercept_)
    if len(model.classes_) == 2:
        # Of two classes scikit-learn has the logit of the second, beside 0.
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.append(-bias / 2, bias / 2)
    return kernel.astype(np.float32), bias.astype(np.float32)
