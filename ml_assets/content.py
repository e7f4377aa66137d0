"""Products as vectors of what is written about them."""

import numpy as np
import polars as pl
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ml_assets.signal_matrix import TooLittleDataError

# Below this many texts a word that occurs once is still a good part of what is known.
SMALL_CATALOGUE = 100


def product_vectors(texts: pl.Series, *, dimensions: int, seed: int) -> np.ndarray:
    """TF-IDF of words and word pairs, folded into dense vectors.

    Latent semantic analysis (Deerwester et al., "Indexing by Latent Semantic Analysis", JASIS
    1990): a truncated singular value decomposition keeps the inner products of the TF-IDF
    vectors as well as this many dimensions can. A catalogue with fewer terms than dimensions
    keeps its TF-IDF vectors as they are.

    Args:
        texts: One per product, in the order the rows are wanted; null where there is none.
        dimensions: Most columns of the result.
        seed: Of the randomised decomposition.

    Returns:
        `(n_products, d)` float32 with d <= dimensions; zeros where there is no text.

    Raises:
        TooLittleDataError: if fewer than two products have any word.
    """
    # Imported here: scikit-learn takes seconds to import, and most processes never train.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    has_text = (texts.str.strip_chars().str.len_chars() > 0).fill_null(False).to_numpy()
    n_texts = int(has_text.sum())
    if n_texts < 2:
        raise TooLittleDataError(
            f"the content model needs two products with text, and got {n_texts}"
        )
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        min_df=2 if n_texts >= SMALL_CATALOGUE else 1,
        sublinear_tf=True,
        dtype=np.float32,
    )
    try:
        tfidf = vectorizer.fit_transform(texts.filter(pl.Series(has_text)).to_list())
    except ValueError as error:
        raise TooLittleDataError(f"the content model found no words: {error}") from error
    if tfidf.shape[1] <= dimensions or n_texts <= dimensions:
        # With fewer texts than dimensions the decomposition would be exact, and larger.
        dense = _exact(tfidf, dimensions)
    else:
        svd = TruncatedSVD(dimensions, n_iter=2, random_state=seed)
        # One BLAS thread: with more, the last bits depend on how the work was split.
        with threadpool_limits(1, "blas"):
            dense = svd.fit_transform(tfidf)
    vectors = np.zeros((len(texts), dense.shape[1]), dtype=np.float32)
    vectors[has_text] = dense
    return vectors


def _exact(tfidf: sp.csr_matrix, dimensions: int) -> np.ndarray:
    if tfidf.shape[1] <= dimensions:
        return tfidf.toarray()
    # A square root of the Gram matrix has the same inner products in n_texts columns.
    gram = (tfidf @ tfidf.T).toarray().astype(np.float64)
    with threadpool_limits(1, "blas"):
        values, basis = np.linalg.eigh(gram)
    return (basis * np.sqrt(np.clip(values, 0.0, None))).astype(np.float32)
