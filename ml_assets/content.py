"""Products as vectors of what is written about them."""

import numpy as np
import polars as pl
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ml_assets.item_item import largest_products
from ml_assets.signal_matrix import TooLittleDataError

# Below this many texts a word that occurs once is still a good part of what is known.
SMALL_CATALOGUE = 100
MOST_PRODUCTS_OF_A_TERM = 2_000


def tfidf(texts: pl.Series) -> sp.csr_matrix:
    """Words and word pairs of each text by how telling they are, rows of length one.

    A word that more than 2,000 products have says nothing about any of them, and would cost as
    many comparisons as all the others together.

    Args:
        texts: One per product, in the order the rows are wanted; null where there is none.

    Returns:
        `(n_products, n_terms)` float32; an empty row where there is no text.

    Raises:
        TooLittleDataError: if fewer than two products have any word.
    """
    # Imported here: scikit-learn takes seconds to import, and most processes never train.
    from sklearn.feature_extraction.text import TfidfVectorizer

    has_text = (texts.str.strip_chars().str.len_chars() > 0).fill_null(False)
    n_texts = int(has_text.sum())
    if n_texts < 2:
        raise TooLittleDataError(
            f"the content model needs two products with text, and got {n_texts}"
        )
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        min_df=2 if n_texts >= SMALL_CATALOGUE else 1,
        max_df=MOST_PRODUCTS_OF_A_TERM if n_texts > MOST_PRODUCTS_OF_A_TERM else 1.0,
        sublinear_tf=True,
        dtype=np.float32,
    )
    try:
        vectors = vectorizer.fit_transform(texts.filter(has_text).to_list())
    except ValueError as error:
        raise TooLittleDataError(f"the content model found no words: {error}") from error
    lengths = np.zeros(len(texts), dtype=np.int64)
    lengths[has_text.to_numpy()] = np.diff(vectors.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_matrix(
        (vectors.data, vectors.indices, indptr), shape=(len(texts), vectors.shape[1])
    )


def terms_or_reason(texts: pl.Series) -> tuple[sp.csr_matrix | None, str]:
    """What `tfidf` gives, or why nothing is known."""
    try:
        return tfidf(texts), ""
    except TooLittleDataError as reason:
        return None, str(reason)


def text_neighbours(vectors: sp.csr_matrix, *, k: int) -> sp.csr_matrix:
    """Likeness of texts as an item-item model: each product follows from the k most like it.

    Kept by the product that follows, so that one nobody has touched yet is arrived at too.

    Args:
        vectors: From `tfidf`.
        k: Most products kept for each.

    Returns:
        `(n_products, n_products)` float32 cosines with entries [touched, follows].
    """
    by_term = sp.csr_matrix(vectors.T)
    ones = np.ones(vectors.shape[0], dtype=np.float32)
    nearest = largest_products(by_term, by_term, source_scale=ones, target_scale=ones, k=k)
    follows = sp.csr_matrix(nearest.T)
    follows.sort_indices()
    return follows


def product_vectors(texts: pl.Series, *, dimensions: int, seed: int) -> np.ndarray:
    """TF-IDF folded into dense vectors.

    Latent semantic analysis (Deerwester et al., "Indexing by Latent Semantic Analysis", JASIS
    1990): a truncated singular value decomposition keeps the inner products of the TF-IDF
    vectors as well as this many dimensions can. A catalogue with fewer terms than dimensions
    keeps its TF-IDF vectors as they are.

    Args:
        texts: See `tfidf`.
        dimensions: Most columns of the result.
        seed: Of the randomised decomposition.

    Returns:
        `(n_products, d)` float32 with d <= dimensions; zeros where there is no text.

    Raises:
        TooLittleDataError: see `tfidf`.
    """
    # Imported here: scikit-learn takes seconds to import, and most processes never train.
    from sklearn.decomposition import TruncatedSVD

    vectors = tfidf(texts)
    n_texts = int((np.diff(vectors.indptr) > 0).sum())
    if vectors.shape[1] <= dimensions or n_texts <= dimensions:
        # With fewer texts than dimensions the decomposition would be exact, and larger.
        return _exact(vectors, dimensions)
    svd = TruncatedSVD(dimensions, n_iter=2, random_state=seed)
    # One BLAS thread: with more, the last bits depend on how the work was split.
    with threadpool_limits(1, "blas"):
        return svd.fit_transform(vectors).astype(np.float32)


def _exact(vectors: sp.csr_matrix, dimensions: int) -> np.ndarray:
    if vectors.shape[1] <= dimensions:
        return vectors.toarray()
    # A square root of the Gram matrix has the same inner products in n_texts columns.
    has_text = np.diff(vectors.indptr) > 0
    known = vectors[has_text]
    gram = (known @ known.T).toarray().astype(np.float64)
    with threadpool_limits(1, "blas"):
        values, basis = np.linalg.eigh(gram)
    dense = np.zeros((len(has_text), len(values)), dtype=np.float32)
    dense[has_text] = basis * np.sqrt(np.clip(values, 0.0, None))
    return dense
