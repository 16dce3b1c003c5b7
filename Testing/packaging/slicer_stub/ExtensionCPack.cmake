# Slicer writes what the Extensions Manager shows; it fails if something is missing.
set(stub_description)
foreach(stub_name HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  if(NOT EXTENSION_${stub_name})
    message(FATAL_ERROR "EXTENSION_${stub_name} is not set")
  endif()
  string(APPEND stub_description "${stub_name} ${EXTENSION_${stub_name}}\n")
endforeach()
file(WRITE ${CMAKE_BINARY_DIR}/${PROJECT_NAME}.s4ext "${stub_description}")
